"""The event log: one writer, any number of readers, nothing lost, doubled or reordered."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.chat.log import Numbered, Reader, ResponseLog, merge
from causerie.types import (
    CancelCause,
    Event,
    Finished,
    FinishReason,
    Part,
    PrefillProgress,
    Queued,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)

END = Finished((FinishReason.STOP,), Usage(1, 1))


class Recorder:
    """Says what a log told its owner."""

    def __init__(self) -> None:
        self.cancelled: list[CancelCause] = []
        self.abandoned = 0
        self.log = ResponseLog("r", on_cancel=self.cancelled.append, on_abandoned=self._abandon)

    def _abandon(self, _: ResponseLog) -> None:
        self.abandoned += 1


def delta(text: str, index: int = 0) -> TextDelta:
    return TextDelta((Part(index, text, 1, (TokenLogprob(len(text), -1.0),)),))


async def read_all(reader: Reader) -> list[Numbered]:
    return [numbered async for numbered in reader]


async def test_a_reader_gets_events_as_they_are_appended() -> None:
    log = Recorder().log
    reader = log.reader()
    task = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert not task.done()
    log.append(Queued(3))
    assert await task == (1, Queued(3))


async def test_a_late_reader_gets_everything_with_the_missed_text_as_one_event() -> None:
    log = Recorder().log
    for event in (Started(2), delta("a"), delta("b"), delta("c"), END):
        log.append(event)
    events = await read_all(log.reader())
    assert [number for number, _ in events] == [1, 4, 5]
    joined = events[1].event
    assert isinstance(joined, TextDelta)
    assert (joined.parts[0].text, joined.parts[0].tokens) == ("abc", 3)


async def test_a_reader_resumes_after_a_number() -> None:
    log = Recorder().log
    for event in (Started(2), delta("a"), delta("b"), delta("c"), END):
        log.append(event)
    events = await read_all(log.reader(after=3))
    assert events == [(4, delta("c")), (5, END)]


async def test_the_log_itself_is_never_merged() -> None:
    log = Recorder().log
    for event in (delta("a"), delta("b"), END):
        log.append(event)
    await read_all(log.reader())
    assert await read_all(log.reader(after=1)) == [(2, delta("b")), (3, END)]


async def test_nothing_follows_the_terminal_event() -> None:
    log = Recorder().log
    log.append(END)
    with pytest.raises(RuntimeError, match="terminal"):
        log.append(delta("late"))


async def test_only_the_last_reader_to_leave_abandons_the_log() -> None:
    recorder = Recorder()
    first, second = recorder.log.reader(), recorder.log.reader()
    await first.aclose()
    await first.aclose()
    assert recorder.abandoned == 0
    await second.aclose()
    assert recorder.abandoned == 1


async def test_a_slow_reader_ends_the_response_for_itself_only() -> None:
    recorder = Recorder()
    first, second = recorder.log.reader(), recorder.log.reader()
    first.give_up()
    await first.aclose()
    assert recorder.cancelled == []
    second.give_up()
    assert recorder.cancelled == [CancelCause.SLOW_READER]


async def test_leaving_wakes_a_reader_that_waits() -> None:
    log = Recorder().log
    reader = log.reader()
    task = asyncio.ensure_future(read_all(reader))
    await asyncio.sleep(0)
    await reader.aclose()
    assert await task == []


async def test_cancel_is_told_once_and_never_after_the_end() -> None:
    recorder = Recorder()
    recorder.log.cancel(CancelCause.STOPPED)
    recorder.log.cancel(CancelCause.CLIENT)
    assert recorder.cancelled == [CancelCause.STOPPED]
    ended = Recorder()
    ended.log.append(END)
    ended.log.cancel(CancelCause.CLIENT)
    assert ended.cancelled == []


parts = st.builds(
    Part,
    st.integers(0, 3),
    st.text(max_size=4),
    st.integers(0, 3),
    st.lists(st.builds(TokenLogprob, st.integers(0, 9), st.floats(-9, 0)), max_size=2).map(tuple),
)
deltas = st.lists(parts, min_size=1, max_size=3, unique_by=lambda part: part.index).map(
    lambda found: TextDelta(tuple(sorted(found, key=lambda part: part.index)))
)
heads: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(st.builds(Queued, st.integers(0, 9)), st.builds(PrefillProgress, st.integers(0, 9), st.just(9))),
    max_size=3,
)


def told(events: list[Event]) -> tuple[dict[int, str], dict[int, int], list[Event]]:
    """What a reader knows after ``events``: each choice's text and tokens, and every other event."""
    texts: dict[int, str] = {}
    tokens: dict[int, int] = {}
    others: list[Event] = []
    for event in events:
        if not isinstance(event, TextDelta):
            others.append(event)
            continue
        for part in event.parts:
            texts[part.index] = texts.get(part.index, "") + part.text
            tokens[part.index] = tokens.get(part.index, 0) + part.tokens
    return texts, tokens, others


@given(heads, st.lists(deltas, max_size=12), st.data())
def test_readers_that_cut_and_resume_anywhere_lose_and_double_nothing(
    head: list[Event], body: list[TextDelta], data: st.DataObject
) -> None:
    events: list[Event] = [*head, Started(1), *body, END]

    async def run() -> None:
        log = Recorder().log
        seen: list[Event] = []
        last = 0
        written = 0
        while True:
            burst = data.draw(st.integers(1, 4))
            for event in events[written : written + burst]:
                log.append(event)
            written = min(len(events), written + burst)
            if last == len(events):
                break
            async with log.reader(after=last) as reader:
                for _ in range(data.draw(st.integers(0, 3))):
                    if last >= written:
                        break
                    number, event = await anext(reader)
                    assert number > last
                    seen.append(event)
                    last = number
            if written == len(events) and last < written:
                async with log.reader(after=last) as reader:
                    async for number, event in reader:
                        seen.append(event)
                        last = number
        assert told(seen) == told(events)
        assert seen[-1] == END

    asyncio.run(run())


@given(st.lists(deltas, min_size=1, max_size=6), st.integers(1, 5))
def test_merging_in_any_grouping_says_the_same(found: list[TextDelta], cut: int) -> None:
    assert merge(found) == merge([merge(found[:cut]), *([merge(found[cut:])] if found[cut:] else [])])
