"""Reading ahead with the default model: what it saves, and that nobody's answer suffers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from causerie.chat.build import build_service
from causerie.chat.log import ResponseLog
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.models.folder import ModelFolder
from causerie.types import ChatPrompt, Finished, GenerationRequest, Message, Prompt, SamplingParams, TextDelta, Usage
from tests.support.service import until

pytestmark = [pytest.mark.model, pytest.mark.slow]

SEA = "The harbour was quiet that morning, and two boats lay against the wall with their sails down. "
HILL = "Up on the hill, behind the old school, nobody had seen the postman since the third of May. "


def turn(text: str) -> ChatPrompt:
    return ChatPrompt((Message("user", text),))


async def ask(service: ChatService, name: str, prompt: Prompt, max_tokens: int = 4) -> ResponseLog:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return await service.create(GenerationRequest(name, prompt, sampling))


async def first_text(service: ChatService, name: str, prompt: Prompt) -> float:
    begin = time.perf_counter()
    async with (await ask(service, name, prompt)).reader() as reader:
        async for _, event in reader:
            if isinstance(event, TextDelta):
                break
    return time.perf_counter() - begin


async def answer(service: ChatService, name: str, prompt: Prompt) -> tuple[str, Usage]:
    log = await ask(service, name, prompt, 16)
    await until(lambda: log.ended, 60)
    end = log._events[-1]
    assert isinstance(end, Finished)
    deltas = [event for event in log._events if isinstance(event, TextDelta)]
    return "".join(part.text for delta in deltas for part in delta.parts), end.usage


@asynccontextmanager
async def serving() -> AsyncIterator[ChatService]:
    service = build_service(Settings())
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def test_a_prompt_that_was_typed_is_answered_much_sooner_than_a_cold_one(default_folder: ModelFolder) -> None:
    async with serving() as service:
        await first_text(service, "warm", turn("Hi."))
        cold = await first_text(service, "cold", turn(HILL * 80))
        typing = service.typing(turn(""))
        text = SEA * 80
        for place in range(0, len(text), 100):
            typing.append(text[place : place + 100])
            await asyncio.sleep(0.01)
        whole = len(service.text.encode(turn(text)))
        await until(lambda: typing.read > whole - 64, 60)
        begin = time.perf_counter()
        prompt = await typing.commit()
        assert prompt == turn(text)
        committed = time.perf_counter() - begin
        assert committed + await first_text(service, "typed", prompt) < cold / 2


@pytest.mark.parametrize("text", [SEA, HILL * 20])
async def test_what_was_read_in_a_pause_is_cached_to_its_last_token(default_folder: ModelFolder, text: str) -> None:
    async with serving() as service:
        typing = service.typing(turn(""))

        def all_read() -> bool:
            return typing._whole is not None and typing.whole == () and typing._reading is None

        typing.append(text[:-5])
        await until(all_read, 60)
        typing.append(text[-5:])
        assert not all_read()
        await until(all_read, 60)
        said, usage = await answer(service, "typed", await typing.commit())
        assert usage.cached_tokens == usage.prompt_tokens - 1
    async with serving() as fresh:
        assert said == (await answer(fresh, "cold", turn(text)))[0]


async def test_two_who_type_and_a_stream_get_whole_answers(default_folder: ModelFolder) -> None:
    async with serving() as service:
        running = await ask(service, "stream", turn("Tell me a story."), 200)
        buffers = [service.typing(turn("")) for _ in range(2)]
        for _ in range(30):
            for buffer, sentence in zip(buffers, (SEA, HILL), strict=True):
                buffer.append(sentence)
            await asyncio.sleep(0.02)
        logs = [running, await ask(service, "short", turn("Hi."))]
        for number, buffer in enumerate(buffers):
            logs.append(await ask(service, f"typed{number}", await buffer.commit()))
        await until(lambda: all(log.ended for log in logs), 60)
        for log, tokens in zip(logs, (200, 4, 4, 4), strict=True):
            end = log._events[-1]
            assert isinstance(end, Finished)
            assert end.usage.completion_tokens == tokens
        await until(lambda: not service.engine.stats().running)
