"""What is typed is read while it is typed, when nobody else needs the engine, and never anything that may change."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from causerie.chat import ahead, buffer
from causerie.chat.ahead import BESIDE_STREAMS
from causerie.chat.buffer import Typing
from causerie.chat.build import scripted_service
from causerie.chat.log import ResponseLog
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.engines.scripted import ScriptedEngine
from causerie.errors import ContextLengthExceeded, InvalidRequest, RequestTooLarge
from causerie.text.tokenizer import ControlTokenizer
from causerie.types import (
    CancelCause,
    ChatPrompt,
    Finished,
    GenerationRequest,
    Message,
    Prompt,
    SamplingParams,
    TextDelta,
    TextPrompt,
    Usage,
)
from tests.support import service as support

until = partial(support.until, seconds=10)
OPEN = ChatPrompt((Message("user", ""),))
WORDS = "The harbour was quiet that morning, and two boats lay against the wall. "
LONG = WORDS * 20
"""1,440 bytes, which are as many tokens here."""


class Noting(ScriptedEngine):
    """Keeps what it was asked to read."""

    def __init__(self, *, partial_blocks: bool = False, **options: Any) -> None:
        super().__init__(support.endless, **options)
        self._info = replace(self._info, partial_blocks=partial_blocks)
        self.pieces: list[list[int]] = []
        self.gently: list[bool] = []
        self.submitted: list[list[int]] = []
        self.order: list[str] = []

    @property
    def lengths(self) -> list[int]:
        return [len(piece) for piece in self.pieces]

    def prefill(self, sequence: int, prompt: Sequence[int], *, gently: bool = False) -> None:
        self.pieces.append(list(prompt))
        self.gently.append(gently)
        super().prefill(sequence, prompt, gently=gently)

    def submit(self, sequence: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self.submitted.append(list(prompt))
        super().submit(sequence, prompt, sampling)


class Room:
    def __init__(self, service: ChatService, engine: Noting) -> None:
        self.service, self.engine = service, engine
        self.prefilled: list[tuple[int, int]] = []
        self.numbers = iter(range(1000))

    def typing(self, prompt: ChatPrompt | TextPrompt = OPEN, **options: Any) -> Typing:
        return self.service.typing(prompt, on_prefilled=lambda *told: self.prefilled.append(told), **options)

    async def ask(self, prompt: Prompt, max_tokens: int = 2) -> ResponseLog:
        sampling = SamplingParams(max_tokens=max_tokens)
        return await self.service.create(GenerationRequest(f"r{next(self.numbers)}", prompt, sampling))

    async def usage(self, prompt: Prompt) -> Usage:
        log = await self.ask(prompt)
        await until(lambda: log.ended)
        end = log._events[-1]
        assert isinstance(end, Finished)
        return end.usage

    async def quiet(self) -> None:
        """Wait until the engine has nothing to do, and nobody is about to give it anything."""
        for _ in range(3):
            await until(lambda: not self.engine.stats().running and not self.engine._inbox)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def room(*, engine: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Room]:
    noting = Noting(**(engine or {}))
    service = scripted_service(Settings(**settings), noting)
    await service.start()
    try:
        yield Room(service, noting)
    finally:
        await service.stop()


def final_ids(here: Room, prompt: Prompt) -> list[int]:
    return here.service.text.encode(prompt)


async def test_what_is_typed_is_read_piece_by_piece_and_the_answer_finds_it() -> None:
    async with room() as here:
        typing = here.typing()
        for letter in LONG:
            typing.append(letter)
            await asyncio.sleep(0)
        await here.quiet()
        prompt = await typing.commit()
        assert prompt == ChatPrompt((Message("user", LONG),))
        usage = await here.usage(prompt)
    assert usage.cached_tokens is not None
    assert usage.prompt_tokens - usage.cached_tokens < 100
    ids = final_ids(here, prompt)
    assert len(here.engine.pieces) > 3
    assert all(ids[: len(piece)] == piece for piece in here.engine.pieces)
    assert here.engine.lengths == sorted(set(here.engine.lengths))


async def test_progress_says_what_is_settled_and_what_is_read() -> None:
    async with room() as here:
        typing = here.typing()
        typing.append(LONG)
        await here.quiet()
        typing.close()
    settled, read = zip(*here.prefilled, strict=True)
    assert list(read) == here.engine.lengths == sorted(read)
    assert read[-1] <= settled[-1] < len(LONG) + 20


async def test_the_conversation_before_it_is_read_before_anything_is_typed() -> None:
    history = (Message("user", WORDS * 3), Message("assistant", WORDS * 3), Message("user", ""))
    async with room() as here:
        typing = here.typing(ChatPrompt(history))
        await here.quiet()
        assert here.engine.lengths[-1] > len(WORDS) * 6
        typing.close()


async def test_plain_text_is_read_ahead_too() -> None:
    async with room() as here:
        typing = here.typing(TextPrompt(""))
        typing.append(LONG)
        await here.quiet()
        prompt = await typing.commit()
        assert prompt == TextPrompt(LONG)
        assert (await here.usage(prompt)).cached_tokens or len(LONG) - 100 < 0


async def test_an_edit_reads_again_from_where_it_was_made() -> None:
    async with room() as here:
        typing = here.typing()
        typing.append(LONG)
        await here.quiet()
        before = len(here.engine.pieces)
        typing.truncate(len(LONG) - 300)
        typing.append("But then the wind rose and all was changed. " * 10)
        await here.quiet()
        again = here.engine.lengths[before:]
        assert again
        assert min(again) > len(LONG) - 300
        prompt = await typing.commit()
        assert all(final_ids(here, prompt)[: len(piece)] == piece for piece in here.engine.pieces[before:])
        assert ((await here.usage(prompt)).cached_tokens or 0) > len(LONG)


async def test_a_prompt_that_somebody_waits_for_is_read_first() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}, prefill_piece=32) as here:
        typing = here.typing()
        typing.append(LONG)
        await until(lambda: here.engine.pieces)
        assert here.engine.lengths == [64], "one piece in flight"
        log = await here.ask(TextPrompt("x" * 200))
        while here.engine.submitted == []:
            permits.release()
            await asyncio.sleep(0.005)
        assert all(set(piece) == {ord("x")} for piece in here.engine.pieces[1:])
        assert len(here.engine.pieces) == 1 + 6
        permits.release(1000)
        await until(lambda: log.ended)
        await until(lambda: here.engine.lengths[-1] > 200 and here.engine.pieces[-1][0] != ord("x"))
        typing.close()


async def test_nothing_is_read_ahead_while_a_request_waits_for_its_turn() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}, max_batch_size=1) as here:
        first, second = await here.ask(TextPrompt("a"), 1000), await here.ask(TextPrompt("b"), 1000)
        assert here.service.waiting == 1
        typing = here.typing()
        typing.append(LONG)
        permits.release(5)
        await until(lambda: here.engine.stats().steps == 5)
        await asyncio.sleep(0.01)
        assert here.engine.pieces == []
        first.cancel(CancelCause.STOPPED)
        second.cancel(CancelCause.STOPPED)
        permits.release(1000)
        await until(lambda: here.engine.pieces)
        typing.close()


async def test_nothing_is_read_ahead_while_a_first_token_is_waited_for() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}) as here:
        log = await here.ask(TextPrompt("a"), 100)
        typing = here.typing()
        typing.append(LONG)
        assert here.engine.pieces == []
        permits.release(1)
        await until(lambda: here.engine.pieces)
        assert not log.ended
        permits.release(1000)
        typing.close()


async def test_pieces_are_small_while_answers_are_written() -> None:
    async with room(engine={"step_seconds": 0.002}) as here:
        log = await here.ask(TextPrompt("a"), 10_000)
        await until(lambda: any(isinstance(event, TextDelta) for event in log._events))
        typing = here.typing()
        typing.append(LONG)
        await until(lambda: len(here.engine.pieces) > 3)
        assert here.engine.lengths[:4] == [BESIDE_STREAMS * count for count in (1, 2, 3, 4)]
        log.cancel(CancelCause.STOPPED)
        typing.close()


@pytest.fixture
def gently_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_GENTLY_BEHIND", 0)


@asynccontextmanager
async def beside_a_stream(permits: threading.Semaphore | None = None) -> AsyncIterator[Room]:
    async with room(engine={"step_seconds": 0.0005, "permits": permits}) as here:
        log = await here.ask(TextPrompt("a"), 10_000)
        if permits is not None:
            permits.release(1)
        await until(lambda: any(isinstance(event, TextDelta) for event in log._events))
        yield here
        log.cancel(CancelCause.STOPPED)
        if permits is not None:
            permits.release(1000)


@pytest.mark.usefixtures("gently_from_the_start")
async def test_beside_streams_a_typist_is_read_gently_and_a_paste_at_once() -> None:
    async with beside_a_stream() as here:
        typing = here.typing(TextPrompt(""))
        typing.append("x " * 60)
        await until(lambda: typing.read == 96)
        assert here.engine.gently == [True] * 3
        typing.append("y " * 160)
        await until(lambda: typing.read == 416)
        assert here.engine.gently == [True] * 3 + [False] * 6 + [True] * 4, "the last 128 tokens as if typed"
        typing.close()


async def test_near_the_start_of_a_text_whole_pieces_are_short_enough() -> None:
    async with beside_a_stream() as here:
        typing = here.typing(TextPrompt(""))
        for length in range(64, 1200, 64):
            typing.append("x " * 32)
            await until(lambda length=length: typing.read >= length - 64)  # type: ignore[misc]
        assert here.engine.gently == [length > 1024 for length in here.engine.lengths]
        assert {True, False} == set(here.engine.gently)
        typing.close()


async def test_on_an_idle_engine_nothing_is_read_gently() -> None:
    async with room() as here:
        typing = here.typing()
        typing.append(WORDS)
        await here.quiet()
        assert here.engine.gently == [False]
        typing.close()


async def until_ended(log: ResponseLog, permits: threading.Semaphore) -> None:
    """However many steps that takes: the stream beside takes some while the service decides on the next piece."""

    def ended() -> bool:
        permits.release()
        return log.ended

    await until(ended)


async def typed_and_read_a_little(here: Room, permits: threading.Semaphore) -> Typing:
    """Some of its first block has been read, gently, and a step waits for its permit."""
    typing = here.typing(TextPrompt(""))
    typing.append("x " * 60)
    permits.release(5)
    await until(lambda: here.engine.stats().steps == 6 and here.engine.gently == [True])
    return typing


@pytest.mark.usefixtures("gently_from_the_start")
async def test_commit_gives_up_what_is_being_read_gently() -> None:
    permits = threading.Semaphore(0)
    async with beside_a_stream(permits) as here:
        typing = await typed_and_read_a_little(here, permits)
        prompt = await asyncio.wait_for(typing.commit(), 5)  # In the middle of a step.
        asked = await here.ask(prompt)
        await until_ended(asked, permits)
        assert here.engine.gently == [True]
        assert here.engine.submitted[-1] == final_ids(here, prompt)


@pytest.mark.usefixtures("gently_from_the_start")
async def test_a_text_that_was_interrupted_is_read_on() -> None:
    permits = threading.Semaphore(0)
    async with beside_a_stream(permits) as here:
        typing = await typed_and_read_a_little(here, permits)
        asked = await here.ask(TextPrompt("y" * 1000))
        await until_ended(asked, permits)
        assert [chr(piece[0]) for piece in here.engine.pieces[:4]] == ["x", "y", "y", "y"]
        permits.release(2000)
        await until(lambda: typing.read == 96)
        typing.close()


async def test_buffers_take_turns() -> None:
    async with room() as here:
        one, two = here.typing(TextPrompt("")), here.typing(TextPrompt(""))
        one.append("one " * 200)
        two.append("two " * 200)
        await here.quiet()
        assert [chr(piece[0]) for piece in here.engine.pieces[:6]] == ["o", "t", "o", "t", "o", "t"]
        one.close()
        two.close()


async def test_no_more_buffers_are_read_ahead_than_may_run_and_the_next_moves_up() -> None:
    async with room(max_batch_size=1) as here:
        one, two = here.typing(TextPrompt("")), here.typing(TextPrompt(""))
        one.append("one " * 20)
        two.append("two " * 20)
        await here.quiet()
        assert {piece[0] for piece in here.engine.pieces} == {ord("o")}
        one.close()
        two.append("two " * 20)
        await here.quiet()
        assert here.engine.pieces[-1][0] == ord("t")
        assert await two.commit() == TextPrompt("two " * 40)


async def test_commit_waits_for_the_piece_in_flight() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}) as here:
        typing = here.typing()
        typing.append(LONG)
        await until(lambda: here.engine.stats().running)
        commit = asyncio.create_task(typing.commit())
        await asyncio.sleep(0.01)
        assert not commit.done()
        permits.release(1)
        await asyncio.wait_for(commit, 5)
        assert here.engine.lengths == [256]


async def test_a_commit_that_is_given_up_leaves_nothing_behind() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}) as here:
        typing = here.typing()
        typing.append(LONG)
        await until(lambda: here.engine.stats().running)
        commit = asyncio.create_task(typing.commit())
        await asyncio.sleep(0)
        commit.cancel()
        permits.release(10)
        await here.quiet()
        assert here.engine.lengths == [256]


async def test_another_buffer_does_not_slip_in_between_commit_and_request() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}) as here:
        one, two = here.typing(TextPrompt("")), here.typing(TextPrompt(""))
        one.append("one " * 100)
        two.append("two " * 100)
        await until(lambda: here.engine.stats().running)

        async def answer() -> ResponseLog:
            return await here.ask(await one.commit())

        asking = asyncio.create_task(answer())
        await asyncio.sleep(0.01)
        permits.release(1)
        await asyncio.wait_for(asking, 5)
        permits.release(100)
        await until(lambda: here.engine.submitted)
        assert not any(piece[0] == ord("t") for piece in here.engine.pieces[:2])
        two.close()


@pytest.mark.parametrize("text", ["Why is the sky blue?", LONG, WORDS * 80])
async def test_after_a_pause_all_is_read_as_it_stands_and_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "_PAUSE", 0.05)
    async with room(engine={"partial_blocks": True}) as here:
        typing = here.typing()
        typing.append(text)
        whole = final_ids(here, ChatPrompt((Message("user", text),)))
        await until(lambda: whole in here.engine.pieces)
        await here.quiet()
        assert here.engine.pieces.count(whole) == 1
        assert all(len(piece) % 32 == 0 for piece in here.engine.pieces if piece != whole)
        assert all(read < len(whole) for _, read in here.prefilled), "of what may still go on, nothing is told"
        typing.append(" And the sea?")
        longer = final_ids(here, ChatPrompt((Message("user", text + " And the sea?"),)))
        await until(lambda: longer in here.engine.pieces)
        await here.usage(await typing.commit())
        assert here.engine.submitted == [longer]


async def test_what_goes_on_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "_PAUSE", 0.01)
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits, "partial_blocks": True}) as here:
        typing = here.typing()
        typing.append(WORDS)
        await until(lambda: typing.whole != ())  # It waits behind the piece in flight.
        typing.append(" And why")
        assert typing.whole == ()
        await until(lambda: typing.whole != ())
        typing.truncate(10)
        assert typing.whole == ()
        await until(lambda: typing.whole != ())
        typing.close()
        assert typing.whole == ()
        permits.release(10)
        await here.quiet()
        assert len(here.engine.pieces) == 1


async def test_nothing_is_read_whole_while_answers_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "_PAUSE", 0.01)
    async with room(engine={"step_seconds": 0.002, "partial_blocks": True}) as here:
        log = await here.ask(TextPrompt("a"), 10_000)
        await until(lambda: any(isinstance(event, TextDelta) for event in log._events))
        typing = here.typing()
        typing.append(WORDS)
        await until(lambda: typing.whole != ())
        steps = here.engine.stats().steps
        await until(lambda: here.engine.stats().steps > steps + 20)
        whole = list(typing.whole)
        assert whole == final_ids(here, ChatPrompt((Message("user", WORDS),)))
        assert whole not in here.engine.pieces
        log.cancel(CancelCause.STOPPED)
        await until(lambda: typing.whole == ())
        assert here.engine.pieces[-1] == whole
        typing.close()


async def test_a_committed_prompt_is_encoded_behind_what_was_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    async with room() as here:
        history = (Message("user", "Hello."), Message("assistant", "Hi."))
        typing = here.typing(ChatPrompt((*history, Message("user", ""))))
        typing.append(LONG)
        await here.quiet()
        settled = len(typing.ids)
        prompt = await typing.commit()
        whole, encoded = final_ids(here, prompt), list[str]()
        encode = ControlTokenizer.encode

        def noted(self: ControlTokenizer, text: str, limit: int | None = None) -> list[int]:
            encoded.append(text)
            return encode(self, text, limit)

        monkeypatch.setattr(ControlTokenizer, "encode", noted)
        await here.usage(prompt)
        assert here.engine.submitted == [whole]
        assert len("".join(encoded)) < 80 < settled


async def test_closing_ends_the_reading() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}) as here:
        typing = here.typing()
        typing.append(LONG)
        await until(lambda: here.engine.stats().running)
        typing.close()
        typing.close()
        permits.release(10)
        await here.quiet()
        assert here.engine.lengths == [256]
        with pytest.raises(RuntimeError):
            typing.append("more")


async def test_a_buffer_may_be_closed_by_what_is_told_of_its_progress() -> None:
    async with room() as here:
        typing = here.service.typing(OPEN, on_prefilled=lambda *_: typing.close())
        typing.append(LONG)
        await here.quiet()
        assert here.engine.lengths == [256]


@pytest.mark.parametrize("act", [Typing.close, Typing.clear, lambda typing: typing.append(WORDS)])
async def test_a_buffer_may_be_changed_by_the_news_that_its_beginning_is_cached(act: Callable[[Typing], None]) -> None:
    async with room() as here:
        first = here.typing()
        first.append(LONG[:720])
        await here.quiet()
        first.close()
        told = itertools.count()
        second = here.service.typing(OPEN, on_prefilled=lambda *_: None if next(told) else act(second))
        second.append(LONG)
        await here.quiet()
        assert all(here.engine.pieces)
        second.close()
        assert (await here.usage(TextPrompt("hello"))).completion_tokens == 2


async def test_a_buffer_is_bounded_and_says_so() -> None:
    async with room(max_typed_characters=10) as here:
        typing = here.typing()
        typing.append("12345678")
        with pytest.raises(RequestTooLarge, match="10"):
            typing.append("abc")
        assert (typing.text, len(typing)) == ("12345678", 8)
        for wrong in (-1, 9):
            with pytest.raises(InvalidRequest, match="8 characters"):
                typing.truncate(wrong)
        typing.truncate(8)
        typing.clear()
        typing.append("abc")
        assert await typing.commit() == ChatPrompt((Message("user", "abc"),))


async def test_an_engine_that_reuses_nothing_reads_nothing_ahead() -> None:
    async with room(engine={"prefix_block": 0}) as here:
        typing = here.typing()
        typing.append(LONG)
        await here.quiet()
        assert here.engine.pieces == []
        assert (await here.usage(await typing.commit())).prompt_tokens > len(LONG)


async def test_reading_ahead_leaves_the_cache_to_what_was_admitted() -> None:
    async with room(engine={"step_seconds": 0.002, "kv_tokens": 1024}) as here:
        log = await here.ask(TextPrompt("a"), 1024 - 256 - 32)
        typing = here.typing()
        typing.append(LONG)
        await until(lambda: here.engine.lengths[-1:] == [256])
        steps = here.engine.stats().steps
        await until(lambda: here.engine.stats().steps > steps + 20)
        assert here.engine.lengths[-1] == 256
        assert not log.ended
        log.cancel(CancelCause.STOPPED)
        await until(lambda: here.engine.lengths[-1] > 256)
        typing.close()


async def test_a_text_that_was_evicted_is_not_read_again_and_again() -> None:
    async with room() as here:
        typing = here.typing()
        typing.append(LONG[:720])
        await here.quiet()
        count = len(here.engine.pieces)
        here.engine._prefixes.clear()
        typing.append(LONG[720:])
        await here.quiet()
        assert len(here.engine.pieces) == count
        assert await typing.commit() == ChatPrompt((Message("user", LONG),))


async def test_an_engine_that_breaks_while_reading_ahead_costs_nobody_else_anything() -> None:
    class Breaking(Noting):
        def _remember(self, prompt: Sequence[int]) -> None:
            if len(prompt) == 512:
                raise ValueError("broken")
            super()._remember(prompt)

    engine = Breaking()
    service = scripted_service(Settings(), engine)
    await service.start()
    here = Room(service, engine)
    typing = here.typing()
    typing.append(LONG)
    await here.quiet()
    assert here.engine.lengths == [256, 512]
    assert (await here.usage(TextPrompt("hello"))).completion_tokens == 2
    typing.close()
    await service.stop()


@pytest.mark.parametrize("text", ["\ud800", LONG + "\udfff"])
async def test_what_no_request_may_hold_is_not_read(text: str) -> None:
    async with room() as here:
        typing = here.typing()
        typing.append(text + " and so on" * 10)
        await here.quiet()
        assert here.engine.pieces == []
        with pytest.raises(InvalidRequest):
            await here.ask(await typing.commit())


async def test_a_text_beyond_the_window_is_not_read_on_until_it_is_shortened() -> None:
    async with room(engine={"context_window": 512}) as here:
        typing = here.typing()
        typing.append(LONG)
        await here.quiet()
        assert here.engine.pieces == []
        typing.truncate(400)
        await here.quiet()
        assert here.engine.lengths[-1] >= 384
        typing.append(LONG)
        with pytest.raises(ContextLengthExceeded):
            await here.ask(await typing.commit())


async def test_turns_that_will_be_left_out_are_not_read() -> None:
    old = (Message("user", "o" * 300), Message("assistant", "o" * 300))
    async with room(engine={"context_window": 512}) as here:
        typing = here.typing(ChatPrompt((*old, Message("user", "")), "drop_oldest"))
        typing.append(LONG[:200])
        await here.quiet()
        prompt = await typing.commit()
        log = await here.ask(prompt)
        await until(lambda: log.ended)
    assert here.engine.pieces
    assert here.engine.submitted[0][: here.engine.lengths[-1]] == here.engine.pieces[-1]


async def test_long_texts_are_encoded_beside_the_loop_and_an_edit_meanwhile_counts() -> None:
    async with room() as here:
        typing = here.typing()
        typing.append(WORDS * 60)
        typing.append("tail " * 10)
        assert list(typing.ids) == list(here.service.text.settled(OPEN).ids), "nothing was encoded yet"
        typing.truncate(4000)
        typing.append("Another end. " * 30)
        await here.quiet()
        await until(lambda: here.engine.pieces and here.engine.lengths[-1] > len(typing) - 200)
        await here.quiet()
        prompt = await typing.commit()
        ids = final_ids(here, prompt)
    assert ids[: here.engine.lengths[-1]] == here.engine.pieces[-1]


async def test_stopping_the_service_ends_a_commit_that_waits() -> None:
    permits = threading.Semaphore(0)
    async with room(engine={"permits": permits}) as here:
        typing = here.typing()
        typing.append(LONG)
        await until(lambda: here.engine.stats().running)
        commit = asyncio.create_task(typing.commit())
        await asyncio.sleep(0)
        late = here.typing()
        await here.service.stop()
        await asyncio.wait_for(commit, 5)
        late.append(LONG)
        late.close()


typed = [WORDS, "a", " ", "don't ", "<|im_", "end|>", "<|im_end|>", "\n\n", "\u4f60\u597d\uff0c", "x" * 70]
texts = st.sampled_from(typed) | st.text()
acts = st.lists(texts.map(lambda text: ("append", text)) | st.tuples(st.just("keep"), st.floats(0, 1)), max_size=30)


@profile(deadline=None, max_examples=60)
@given(acts, st.booleans())
@example(
    [("append", WORDS * 2), ("keep", 0.5), ("append", "world foo bar" * 9), ("keep", 0.0), ("append", WORDS)], False
)
def test_whatever_is_typed_and_edited_is_what_is_committed(edits: list[tuple[str, Any]], raw: bool) -> None:
    async def play() -> None:
        async with room() as here:
            typing, expected = here.typing(TextPrompt("") if raw else OPEN), ""
            for verb, value in edits:
                if verb == "append":
                    typing.append(value)
                    expected += value
                else:
                    expected = expected[: int(value * len(expected))]
                    typing.truncate(len(expected))
                assert typing.text == expected
                await asyncio.sleep(0)
            await here.quiet()
            settled = list(typing.ids)
            prompt = await typing.commit()
            assert prompt == (TextPrompt(expected) if raw else ChatPrompt((Message("user", expected),)))
            if expected and expected.isprintable():
                assert final_ids(here, prompt)[: len(settled)] == settled
                assert all(told[1] <= told[0] for told in here.prefilled)
            assert here.engine.stats().running == 0

    asyncio.run(play())
