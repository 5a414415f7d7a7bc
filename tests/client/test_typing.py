"""Turns that are typed: sent exactly as typed, whatever becomes of what reads them ahead."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.chat.build import build_archive
from causerie.client import AsyncChat, AsyncClient
from causerie.client.ahead import edits
from causerie.config import Settings
from causerie.errors import InvalidRequest
from tests.client.test_cuts import cut_client, resets
from tests.support.fault_proxy import Fault
from tests.support.server import running_server
from tests.support.service import endless, says, service_with, until, until_idle

SENTENCE = "Ein Löwe 🦁 läuft durch den Wald. "


def apply(buffer: str | None, frames: list[dict[str, Any]]) -> str | None:
    """What a server makes of the frames."""
    for frame in frames:
        match frame:
            case {"type": "input_text_buffer.clear"}:
                buffer = None
            case {"type": "input_text_buffer.truncate", "length": int(length)}:
                assert buffer is not None and length < len(buffer)
                buffer = buffer[:length]
            case {"type": "input_text_buffer.append", "text": str(text)}:
                assert ("response" in frame) == (buffer is None)
                buffer = (buffer or "") + text
    return buffer


@given(st.lists(st.none() | st.text("ab🦁", max_size=6), max_size=8))
def test_the_frames_make_the_servers_text_ours(states: list[str | None]) -> None:
    before = buffer = None
    for after in states:
        buffer = apply(buffer, list(edits(before, after, {"conversation": "c"})))
        assert buffer == after
        before = after


def test_only_what_changed_is_sent() -> None:
    assert edits("Hello you", "Hello, you", {}) == [
        {"type": "input_text_buffer.truncate", "length": 5},
        {"type": "input_text_buffer.append", "text": ", you"},
    ]
    assert edits("same", "same", {}) == []


@pytest.mark.parametrize("plan", [lambda: Fault(None), resets(1, 1, 1, 400, 200, 1)], ids=["whole", "cut"])
async def test_what_is_typed_is_what_is_said(plan: Callable[[], Fault]) -> None:
    service = service_with(lambda prompt: [byte for byte in prompt if byte < 256])
    async with cut_client(service, plan) as (client, _):
        chat = client.chat()
        chat.type(SENTENCE)
        await asyncio.sleep(0)
        chat.type("No, that is wro")
        chat.truncate(len(SENTENCE))
        chat.type("Ganz allein.")
        assert chat.typed == SENTENCE + "Ganz allein."
        answer = await chat.send()
        assert chat.typed == ""
        assert f"user\n{SENTENCE}Ganz allein." in (said := await answer.read()) and "wro" not in said
        chat.type("Never mind")
        assert "user\nSomething else" in (said := await (await chat.send("Something else")).read())
        assert "Never mind" not in said


def is_read(chat: AsyncChat, before: int) -> bool:
    """The model has read what is typed, which is some 130 tokens behind ``before`` others, but for its last block."""
    settled, read = chat.prefilled or (0, 0)
    return before + 100 < settled < before + 160 and settled - read <= 32


@pytest.mark.parametrize("kept", [False, True], ids=["after a response", "in a conversation"])
async def test_a_turn_is_read_while_it_is_typed(kept: bool) -> None:
    """Also the second, which comes behind all that was said; and what is crossed out is not read again."""
    service = service_with(says("Ja."))
    async with asyncio.timeout(30), running_server(service) as url, AsyncClient(url) as client:
        chat = client.chat(conversation=await client.create_conversation() if kept else None, instructions="Be kind.")
        read = 0
        for _ in range(2):
            for word in (SENTENCE * 5).split(" "):
                chat.type(word + " ")
                await asyncio.sleep(0)
            chat.truncate(100)
            chat.type("Ganz allein.")
            await until(partial(is_read, chat, read))
            answer = await chat.send()
            assert await answer.read() == "Ja." and chat.prefilled is None
            usage = answer.usage
            assert usage is not None and usage.cached_tokens is not None
            assert usage.prompt_tokens - usage.cached_tokens < 3 * 32
            read = usage.prompt_tokens


async def test_a_socket_that_is_lost_is_opened_again_for_the_next_turn() -> None:
    service = service_with(says("Ja."))
    async with cut_client(service, resets(150)) as (client, proxy):
        chat = client.chat()
        chat.type(SENTENCE)
        await until(lambda: proxy.cuts.total() == 1)
        chat.type(SENTENCE * 4)
        assert await (await chat.send()).read() == "Ja."
        chat.type(SENTENCE * 5)
        await until(lambda: chat.prefilled and chat.prefilled[1] > 100)


async def test_a_buffer_that_is_refused_is_left_alone_until_the_next_turn() -> None:
    service = service_with(says("Ja."))
    async with asyncio.timeout(30), running_server(service) as url, AsyncClient(url) as client:
        chat = client.chat()
        chat.type(SENTENCE + "\ud83d")
        await until(lambda: chat._ahead._task is None or chat._ahead._failed)
        chat.truncate(len(SENTENCE))
        assert await (await chat.send()).read() == "Ja."
        chat.type(SENTENCE * 5)
        await until(lambda: chat.prefilled and chat.prefilled[1] > 100)


class SlowSocket:
    """Takes a frame when it is told to, and keeps its text as a server does."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.takes = asyncio.Semaphore(0)
        self.buffer: str | None = None

    async def send(self, frame: str) -> None:
        self.frames.put_nowait(json.loads(frame))
        await self.takes.acquire()
        self.buffer = apply(self.buffer, [json.loads(frame)])


async def test_what_is_typed_while_the_socket_takes_text_is_sent_behind_it() -> None:
    slow = SlowSocket()
    async with asyncio.timeout(10), AsyncClient() as client:
        ahead = client.chat()._ahead
        ahead._task = listening = asyncio.create_task(asyncio.Event().wait())  # type: ignore[assignment]
        following = asyncio.create_task(ahead._follow(slow, listening))  # type: ignore[arg-type]
        ahead.show("Hel", {})
        assert (await slow.frames.get())["text"] == "Hel"
        ahead.show("Hello", {})
        slow.takes.release()
        assert (await slow.frames.get())["text"] == "lo"
        slow.takes.release()
        await until(lambda: slow.buffer == "Hello")
        following.cancel()


async def test_a_turn_that_is_refused_is_still_typed() -> None:
    async with asyncio.timeout(30), running_server(service_with(says("x"))) as url, AsyncClient(url) as client:
        chat = client.chat(temperature=-1)
        chat.type(SENTENCE)
        with pytest.raises(InvalidRequest):
            await chat.send()
        assert chat.typed == SENTENCE


class Held:
    """Holds each call of a method until the test lets it go."""

    def __init__(self, thing: object, name: str) -> None:
        self.called = asyncio.Event()
        self.go = asyncio.Event()
        self._call = getattr(thing, name)
        setattr(thing, name, self)

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.called.set()
        await self.go.wait()
        return await self._call(*arguments, **options)


async def test_what_is_typed_while_a_turn_is_sent_is_the_next_turns() -> None:
    """While the last answer is stopped for it, and while the server begins it; also when it then is refused."""
    service = service_with(lambda prompt: [byte for byte in prompt if byte < 256], step_seconds=0.001)
    archive = build_archive(service, Settings(store=":memory:"))
    async with asyncio.timeout(30), running_server(service, archive) as url, AsyncClient(url) as client:
        chat = client.chat(max_tokens=8000)
        chat.type("First.")
        begins = Held(archive.store, "begin")
        sending = asyncio.create_task(chat.send())
        await begins.called.wait()
        chat.type("Sec")
        begins.go.set()
        first = await sending
        assert chat.typed == "Sec"

        cancels = Held(archive, "cancel")
        chat.type("ond.")
        sending = asyncio.create_task(chat.send())
        await cancels.called.wait()
        chat.type("Thirdly")
        chat.truncate(5)
        another = asyncio.create_task(chat.send())
        cancels.go.set()
        second = await sending
        third = await another
        assert chat.typed == "" and await first.read() is not None and await second.read() is not None
        assert "user\nSecond." in (said := await third.read()) and "user\nThird" in said and "Thirdly" not in said

        refused = client.chat(temperature=-1)
        refused.type("Never ")
        sending = asyncio.create_task(refused.send())
        await asyncio.sleep(0)
        assert refused.typed == ""
        refused.type("mind")
        with pytest.raises(InvalidRequest):
            await sending
        assert refused.typed == "Never mind"


async def test_what_was_typed_while_a_turn_was_sent_is_read_ahead_with_the_rest() -> None:
    service = service_with(says("Ja."))
    archive = build_archive(service, Settings(store=":memory:"))
    async with asyncio.timeout(30), running_server(service, archive) as url, AsyncClient(url) as client:
        chat = client.chat()
        begins = Held(archive.store, "begin")
        sending = asyncio.create_task(chat.send("Hi"))
        await begins.called.wait()
        chat.type(SENTENCE * 4)
        begins.go.set()
        assert await (await sending).read() == "Ja." and chat.typed == SENTENCE * 4
        chat.type(SENTENCE)
        await until(lambda: chat.prefilled and chat.prefilled[1] > 100)


async def test_typing_waits_for_no_network_and_closing_for_no_typing() -> None:
    """The server lets the connection come, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with asyncio.timeout(10), AsyncClient(f"127.0.0.1:{silent.getsockname()[1]}") as client:
            chat = client.chat()
            for _ in range(1000):
                chat.type("a")
            await asyncio.sleep(0.05)
            assert (len(chat.typed), chat.prefilled) == (1000, None)


async def test_a_turn_may_be_typed_while_the_answer_comes_and_then_interrupts_it() -> None:
    service = service_with(
        lambda prompt: b"Done." if b"Stop" in bytes(byte for byte in prompt if byte < 256) else endless(prompt),
        step_seconds=0.002,
    )
    async with asyncio.timeout(30), running_server(service) as url, AsyncClient(url) as client:
        chat = client.chat(max_tokens=8000)
        first = await chat.send("Count")
        await anext(first)
        chat.type("Stop")
        assert await (await chat.send()).read() == "Done."
        assert set(await first.read()) <= {"a"}
        await until_idle(service)
