"""The service on the scripted engine: who runs, what is logged, and how each way to end ends."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from causerie.chat.build import scripted_service
from causerie.chat.choice import Choice
from causerie.chat.log import ResponseLog
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.engines.base import EndReason, Update
from causerie.engines.scripted import OutOfBlocks, Script, ScriptedEngine
from causerie.errors import (
    ContextLengthExceeded,
    DuplicateRequest,
    EngineError,
    EngineOutOfMemory,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    UnsupportedParameter,
)
from causerie.types import (
    CancelCause,
    ChatPrompt,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    Part,
    PrefillProgress,
    Prompt,
    Queued,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
)
from tests.support import service as support

numbers = itertools.count()
until = partial(support.until, seconds=10)


def request(
    text: str = "hi", *, n: int = 1, stop: tuple[str, ...] = (), name: str = "", **sampling: Any
) -> GenerationRequest:
    params = replace(SamplingParams(max_tokens=100), **sampling)
    return GenerationRequest(name or f"r{next(numbers)}", TextPrompt(text), params, n, stop)


@asynccontextmanager
async def serving(
    script: Script | None = None, *, engine: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[ChatService]:
    built = ScriptedEngine(script or (lambda _: b"hello"), **(engine or {}))
    service = scripted_service(Settings(**settings), built)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def events(log: ResponseLog) -> list[Event]:
    async with log.reader() as reader:
        async with asyncio.timeout(10):
            return [event async for _, event in reader]


def text_of(found: Iterable[Event], index: int = 0) -> str:
    deltas = [event for event in found if isinstance(event, TextDelta)]
    return "".join(part.text for delta in deltas for part in delta.parts if part.index == index)


def forever(_: Sequence[int]) -> Iterator[int]:
    return itertools.cycle(b"na ")


async def test_an_answer_is_started_told_and_finished() -> None:
    async with serving() as service:
        found = await events(await service.create(request("abc")))
    assert isinstance(found[0], Started)
    assert found[0].prompt_tokens == 3
    assert text_of(found) == "hello"
    end = found[-1]
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.STOP,)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (3, 6)
    assert sum(isinstance(event, Finished | Failed) for event in found) == 1


async def test_the_output_limit_ends_an_answer_as_length() -> None:
    async with serving() as service:
        found = await events(await service.create(request(max_tokens=3)))
    assert text_of(found) == "hel"
    assert isinstance(found[-1], Finished)
    assert found[-1].reasons == (FinishReason.LENGTH,)


async def test_a_stop_string_ends_the_answer_before_it_and_frees_the_engine() -> None:
    async with serving(lambda _: b"one two three four") as service:
        found = await events(await service.create(request(stop=("three",))))
        assert text_of(found) == "one two "
        assert isinstance(found[-1], Finished)
        assert found[-1].reasons == (FinishReason.STOP,)
        await until(lambda: service.running == 0)


async def test_what_may_begin_a_stop_string_is_held_back_until_it_is_known() -> None:
    permits = threading.Semaphore(0)
    async with serving(lambda _: b"ab<<c", engine={"permits": permits}) as service:
        log = await service.create(request(stop=("<<END>>",)))
        permits.release(4)
        await until(lambda: service.engine.stats().steps == 4)
        await asyncio.sleep(0.01)
        assert text_of(log._events) == "ab"
        permits.release(10)
        assert text_of(await events(log)) == "ab<<c"


async def test_a_character_of_four_bytes_arrives_in_one_delta() -> None:
    async with serving(lambda _: "a🎈b".encode()) as service:
        log = await service.create(request())
        await until(lambda: log.ended)
        texts = [part.text for event in log._events if isinstance(event, TextDelta) for part in event.parts]
    assert [text for text in texts if text] == ["a", "🎈", "b"]


async def test_each_of_n_choices_is_told_and_counted() -> None:
    told = itertools.count()

    def script(_: Sequence[int]) -> bytes:
        return [b"a", b"bb", b"ccc"][next(told) % 3]

    async with serving(script) as service:
        found = await events(await service.create(request(n=3)))
    assert sorted(text_of(found, index) for index in range(3)) == ["a", "bb", "ccc"]
    end = found[-1]
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.STOP,) * 3
    assert end.usage.completion_tokens == 6 + 3
    ends = [part.index for event in found if isinstance(event, TextDelta) for part in event.parts if part.finish_reason]
    assert sorted(ends) == [0, 1, 2]


async def test_the_last_readers_leaving_frees_the_slot_and_a_first_ones_does_not() -> None:
    async with serving(forever, engine={"step_seconds": 0.001}) as service:
        log = await service.create(request(max_tokens=8000))
        first, second = log.reader(), log.reader()
        await first.aclose()
        await asyncio.sleep(0.02)
        assert service.running == 1
        await second.aclose()
        await until(lambda: service.running == 0)
        assert service.engine.stats().running == 0
        assert isinstance(log._events[-1], Finished)
        assert log._events[-1].reasons == (FinishReason.CANCELLED,)


async def test_one_that_leaves_the_queue_never_reaches_the_engine() -> None:
    prompts: list[bytes] = []

    def script(prompt: Sequence[int]) -> Iterator[int]:
        prompts.append(bytes(prompt))
        return forever(prompt)

    async with serving(script, engine={"step_seconds": 0.001}, max_batch_size=1) as service:
        running = (await service.create(request("running", max_tokens=8000))).reader()
        queued = await service.create(request("queued"))
        assert queued._events == [Queued(0, 1.0)]
        await until(lambda: bool(prompts))
        await queued.reader().aclose()
        assert service.waiting == 0
        await running.aclose()
        await until(lambda: service.running == 0)
    assert prompts == [b"running"]


async def test_over_capacity_is_refused_before_the_prompt_is_looked_at() -> None:
    async with serving(forever, engine={"step_seconds": 0.001}, max_batch_size=1, max_waiting=1) as service:
        logs = [await service.create(request(max_tokens=8000)) for _ in range(2)]
        readers = [log.reader() for log in logs]
        lone_surrogate = "\ud800"
        with pytest.raises(Overloaded):
            await service.create(request(lone_surrogate))
        for reader in readers:
            await reader.aclose()
        await until(lambda: service.running == 0)


async def test_a_refused_request_leaves_nothing_behind() -> None:
    async with serving(engine={"context_window": 64}) as service:
        with pytest.raises(ContextLengthExceeded) as refused:
            await service.create(request("x" * 64, name="same"))
        assert (refused.value.prompt_tokens, refused.value.context_window) == (64, 64)
        assert (service.running, service.waiting) == (0, 0)
        assert text_of(await events(await service.create(request(name="same")))) == "hello"


async def test_the_output_limit_is_lowered_to_what_the_window_leaves() -> None:
    async with serving(forever, engine={"context_window": 64}) as service:
        found = await events(await service.create(request("x" * 60)))
    assert text_of(found) == "na n"
    assert isinstance(found[-1], Finished)
    assert found[-1].reasons == (FinishReason.LENGTH,)


async def test_a_parameter_that_the_engine_cannot_honour_is_refused_by_name() -> None:
    async with serving(engine={"parameters": frozenset({"temperature"})}) as service:
        asked: dict[str, Any] = {"top_k": 3, "seed": 1, "logprobs": 0, "min_tokens": 2}
        for name, value in asked.items():
            with pytest.raises(UnsupportedParameter, match=name) as refused:
                await service.create(request(**{name: value}))
            assert refused.value.param == name
        with pytest.raises(UnsupportedParameter) as refused:
            async with serving() as other:
                await other.create(request(logprobs=5))
        assert refused.value.param == "top_logprobs"


async def test_limits_of_the_server_are_said_by_field() -> None:
    async with serving(max_output_tokens=50, max_batch_size=2) as service:
        with pytest.raises(InvalidRequest) as refused:
            await service.create(request(max_tokens=51))
        assert refused.value.param == "max_tokens"
        with pytest.raises(InvalidRequest) as refused:
            await service.create(request(max_tokens=5, n=3))
        assert refused.value.param == "n"
        with pytest.raises(InvalidRequest) as refused:
            await service.create(request(max_tokens=5, min_tokens=6))
        assert refused.value.param == "min_tokens"


async def test_the_same_id_twice_at_once_is_refused_and_the_first_goes_on() -> None:
    async with serving(lambda _: b"hello", engine={"step_seconds": 0.005}) as service:
        log = await service.create(request(name="twin"))
        with pytest.raises(DuplicateRequest):
            await service.create(request(name="twin"))
        assert text_of(await events(log)) == "hello"
        await until(lambda: service.running == 0)
        assert text_of(await events(await service.create(request(name="twin")))) == "hello"


def breaks(prompt: Sequence[int]) -> Iterator[int]:
    yield from b"so far"
    if bytes(prompt) == b"memory":
        raise OutOfBlocks
    if bytes(prompt) == b"bug":
        raise ValueError("secret detail")
    yield from b" so good"


@pytest.mark.parametrize(("prompt", "error"), [("memory", EngineOutOfMemory), ("bug", EngineError)])
async def test_an_engine_that_fails_one_request_fails_only_that_one(prompt: str, error: type[EngineError]) -> None:
    async with serving(breaks) as service:
        bad, good = await service.create(request(prompt)), await service.create(request("fine"))
        found, other = await asyncio.gather(events(bad), events(good))
        assert text_of(found) == "so far"
        assert isinstance(found[-1], Failed)
        assert type(found[-1].error) is error
        assert "secret" not in str(found[-1].error)
        assert text_of(other) == "so far so good"
        assert isinstance(other[-1], Finished)
        assert service.running == 0


async def test_a_failed_choice_fails_the_response_and_frees_the_others() -> None:
    told = itertools.count()

    def script(_: Sequence[int]) -> Iterator[int]:
        if next(told):
            raise OutOfBlocks
        yield from forever(_)

    async with serving(script, engine={"step_seconds": 0.001}) as service:
        found = await events(await service.create(request(n=2, max_tokens=5000)))
        assert isinstance(found[-1], Failed)
        await until(lambda: service.running == 0)
        assert service.engine.stats().running == 0


async def test_a_long_prompt_is_read_in_pieces_with_progress() -> None:
    async with serving(prefill_piece=64, engine={"prefill_per_step": 64}) as service:
        found = await events(await service.create(request("x" * 200)))
        progress = [event for event in found if isinstance(event, PrefillProgress)]
        assert [(event.read, event.total) for event in progress] == [(0, 200), (64, 200), (128, 200), (192, 200)]
        assert text_of(found) == "hello"
        end = found[-1]
        assert isinstance(end, Finished)


async def test_what_a_prompts_own_pieces_put_into_the_cache_does_not_count_as_cached() -> None:
    async with serving(prefill_piece=64, engine={"prefill_per_step": 64}) as service:
        for prompt, cached in (("x" * 200, 0), ("x" * 200, 192), ("x" * 100 + "y" * 100, 96)):
            end = (await events(await service.create(request(prompt))))[-1]
            assert isinstance(end, Finished)
            assert end.usage.cached_tokens == cached


async def test_leaving_while_the_prompt_is_being_read_frees_everything() -> None:
    permits = threading.Semaphore(0)
    async with serving(prefill_piece=64, engine={"prefill_per_step": 64, "permits": permits}) as service:
        log = await service.create(request("x" * 2000))
        reader = log.reader()
        permits.release(3)
        await until(lambda: service.engine.stats().steps >= 3)
        await reader.aclose()
        assert log.ended
        assert service.running == 1, "the piece in flight still holds blocks"
        permits.release(100)
        await until(lambda: service.engine.stats().running == 0 and service.running == 0)
        assert service.engine.stats().steps < 8
        assert text_of(await events(await service.create(request()))) == "hello"


def conversation(turns: int) -> ChatPrompt:
    said = [Message(role, f"turn {turn}") for turn in range(turns) for role in ("user", "assistant")]
    return ChatPrompt((Message("system", "be kind"), *said, Message("user", "last")), "drop_oldest")


async def test_the_oldest_turns_are_left_out_whole_when_the_window_is_full() -> None:
    prompts: list[bytes] = []

    def script(prompt: Sequence[int]) -> bytes:
        prompts.append(bytes(id_ for id_ in prompt if id_ < 256))
        return b"ok"

    async with serving(script, engine={"context_window": 400}) as service:
        asked = replace(request(), prompt=conversation(20))
        found = await events(await service.create(asked))
    started = next(event for event in found if isinstance(event, Started))
    assert 0 < started.dropped_messages < 40
    assert started.dropped_messages % 2 == 0
    kept = prompts[0].decode()
    assert "be kind" in kept
    assert "last" in kept
    assert f"turn {started.dropped_messages // 2 - 1}\n" not in kept.replace("\x00", "\n")
    assert f"turn {started.dropped_messages // 2}" in kept


async def test_draining_lets_answers_finish_and_takes_no_new_ones() -> None:
    async with serving(lambda _: b"hello", engine={"step_seconds": 0.01}) as service:
        log = await service.create(request())
        reading = asyncio.ensure_future(events(log))
        draining = asyncio.ensure_future(service.drain(5))
        await asyncio.sleep(0)
        assert not service.ready
        with pytest.raises(ShuttingDown):
            await service.create(request())
        found = await reading
        assert text_of(found) == "hello"
        assert isinstance(found[-1], Finished)
        async with asyncio.timeout(1):
            await draining


async def test_draining_past_its_deadline_fails_what_is_left_running_or_waiting() -> None:
    async with serving(forever, engine={"step_seconds": 0.001}, max_batch_size=1) as service:
        logs = [await service.create(request(max_tokens=8000)) for _ in range(2)]
        reading = [asyncio.ensure_future(events(log)) for log in logs]
        await service.drain(0.05)
        for found in await asyncio.gather(*reading):
            assert isinstance(found[-1], Failed)
            assert isinstance(found[-1].error, ShuttingDown)
        await until(lambda: service.engine.stats().running == 0)


async def test_one_whose_prompt_is_being_encoded_when_the_server_ends_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as service:
        encoding, go_on = threading.Event(), threading.Event()
        real = service.text.encode

        def slow(prompt: Prompt, *, limit: int | None = None) -> list[int]:
            encoding.set()
            go_on.wait(10)
            return real(prompt, limit=limit)

        monkeypatch.setattr(service.text, "encode", slow)
        creating = asyncio.ensure_future(service.create(request("x" * 5000)))
        await asyncio.to_thread(encoding.wait, 10)
        draining = asyncio.ensure_future(service.drain(0.02))
        await draining
        go_on.set()
        with pytest.raises(ShuttingDown):
            await creating
        assert (service.running, service.waiting) == (0, 0)


async def test_what_goes_wrong_with_one_response_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(lambda _: b"hello", engine={"step_seconds": 0.005}) as service:
        bad, good = await service.create(request(name="bad")), await service.create(request(name="good"))
        real = Choice.advance

        def advance(choice: Choice, update: Update) -> Part | None:
            response, _ = service._sequences.get(update.sequence, (None, None))
            if response is not None and response.log is bad and len(choice.ids) == 2:
                raise ZeroDivisionError
            return real(choice, update)

        monkeypatch.setattr(Choice, "advance", advance)
        found, other = await asyncio.gather(events(bad), events(good))
        assert isinstance(found[-1], Failed)
        assert "ZeroDivision" not in str(found[-1].error)
        assert text_of(other) == "hello"
        await until(lambda: service.running == 0)


async def test_text_that_comes_with_a_failure_is_delivered_before_it() -> None:
    async with serving(forever, engine={"step_seconds": 0.001}) as service:
        log = await service.create(request(max_tokens=8000))
        reader = log.reader()
        await until(lambda: any(isinstance(event, TextDelta) for event in log._events))
        (sequence,) = service._sequences
        service._on_step([Update(sequence, b"!", ended=EndReason.OUT_OF_MEMORY)])
        assert text_of(log._events).endswith("!")
        assert isinstance(log._events[-1], Failed)
        assert log._events[-1].usage.completion_tokens == len(text_of(log._events))
        service.engine.cancel(sequence)
        await reader.aclose()


async def test_stopping_the_engine_ends_what_runs_as_failed() -> None:
    async with serving(forever, engine={"step_seconds": 0.001}) as service:
        log = await service.create(request(max_tokens=8000))
        reading = asyncio.ensure_future(events(log))
        await asyncio.sleep(0.01)
        await service.stop()
        assert isinstance((await reading)[-1], Failed)


async def test_a_stopped_answer_ends_for_its_readers_at_once() -> None:
    permits = threading.Semaphore(0)
    async with serving(forever, engine={"permits": permits}) as service:
        log = await service.create(request(max_tokens=8000))
        reader = log.reader()
        log.cancel(CancelCause.STOPPED)
        assert isinstance(log._events[-1], Finished)
        assert service.running == 1, "the permit stays until the engine is done"
        permits.release(2)
        await until(lambda: service.running == 0)
        await reader.aclose()


async def test_finished_answers_that_nobody_takes_are_capped() -> None:
    async with serving(max_batch_size=1, max_waiting=1) as service:
        readers = []
        for _ in range(2):
            log = await service.create(request())
            readers.append(log.reader())
            await until(lambda log=log: log.ended and service.running == 0)  # type: ignore[misc]
        with pytest.raises(Overloaded, match="still being read"):
            await service.create(request())
        await readers[0].aclose()
        assert text_of(await events(await service.create(request()))) == "hello"


async def test_a_stop_string_inside_a_longer_one_still_stops_at_the_end() -> None:
    async with serving(lambda _: b"say abc") as service:
        found = await events(await service.create(request(stop=("abcd", "bc"))))
    assert text_of(found) == "say a"
    assert isinstance(found[-1], Finished)
    assert found[-1].reasons == (FinishReason.STOP,)


async def test_a_stop_string_that_only_the_limit_reveals_is_a_stop() -> None:
    async with serving(lambda _: b"say abc and more") as service:
        found = await events(await service.create(request(stop=("abcd", "bc"), max_tokens=7)))
    assert text_of(found) == "say a"
    assert isinstance(found[-1], Finished)
    assert found[-1].reasons == (FinishReason.STOP,)


async def test_the_decode_probe_succeeds_on_a_live_engine_and_fails_on_a_hung_one() -> None:
    permits = threading.Semaphore(0)
    async with serving(engine={"permits": permits}) as service:
        assert not await service.check_decode(0.05)
        permits.release(5)
        assert await service.check_decode(5)


async def test_a_step_of_many_sequences_reaches_the_loop_as_one_call() -> None:
    permits = threading.Semaphore(0)
    async with serving(forever, engine={"permits": permits}) as service:
        calls: list[int] = []
        real = service._on_step

        def count(updates: Sequence[Update]) -> None:
            calls.append(len(updates))
            real(updates)

        service._on_step = count  # type: ignore[method-assign]
        readers = [(await service.create(request())).reader() for _ in range(8)]
        permits.release(3)
        await until(lambda: len(calls) >= 3)
        assert len(calls) == service.engine.stats().steps
        assert calls[-1] == 8
        for reader in readers:
            await reader.aclose()
        permits.release(50)
        await until(lambda: service.running == 0)


async def test_logprobs_come_with_the_text_they_belong_to() -> None:
    async with serving(lambda _: "é!".encode()) as service:
        log = await service.create(request(logprobs=0))
        await until(lambda: log.ended)
    parts = [part for event in log._events if isinstance(event, TextDelta) for part in event.parts]
    assert [logprob.id for part in parts for logprob in part.logprobs] == [*"é!".encode(), 257]
    assert sum(part.tokens for part in parts) == 4
