"""Stored responses: nothing is shown before it is kept, and what cannot be kept ends truthfully."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from causerie.chat.journal import Journal
from causerie.chat.log import Numbered, ResponseLog
from causerie.chat.records import ResponseRecord, Status
from causerie.chat.store import Append, End, EndedElsewhere, Retention, Write
from causerie.chat.sweeper import Sweeper
from causerie.errors import CauserieError, ConversationBusy, StoreError, StoreFull
from causerie.types import Failed, Finished, FinishReason, Part, Started, TextDelta, Usage

END = Finished((FinishReason.STOP,), Usage(1, 2))


def delta(text: str) -> TextDelta:
    return TextDelta((Part(0, text, 1),))


class Disk:
    """A store whose commits take until the test lets them through, and fail when it says so."""

    def __init__(self) -> None:
        self.committed: list[list[Write]] = []
        self.begun: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: CauserieError | None = None
        self.carried_out = False
        """Whether what fails is done all the same."""
        self.sweepable = False
        self.sweeps = 0
        self.ended: set[str] = set()
        """What another process has ended."""

    async def sweep(self, now: float, retention: Retention) -> int:
        self.sweeps += 1
        if self.sweepable:
            self.error = None
        return 0

    async def response(self, owner: str, id_: str) -> ResponseRecord | None:
        if self.error is not None and not isinstance(self.error, StoreFull):  # One that is full can be read.
            raise self.error
        return ResponseRecord(id_, owner, 0.0, "m", {}, (), "msg") if id_ in self.begun else None

    async def events(self, owner: str, id_: str, after: int = 0) -> list[Numbered]:
        return [
            Numbered(write.number, write.event)
            for writes in self.committed
            for write in writes
            if isinstance(write, Append) and write.response == id_ and write.number > after
        ]

    async def begin(self, record: ResponseRecord, behind: str | None = None) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.begun.append(record.id)

    async def write(self, writes: Sequence[Write]) -> None:
        await self.open.wait()
        if self.error is not None and not self.carried_out:
            raise self.error
        if lapsed := sorted({write.response for write in writes} & self.ended):
            raise EndedElsewhere(lapsed)
        self.committed.append(list(writes))
        if self.error is not None:
            raise self.error


class Stored:
    """A log on its way to a disk, and what its owner was told."""

    def __init__(self, journal: Journal, id_: str = "r", kept_as: str = "") -> None:
        self.broken: list[CauserieError] = []
        record = ResponseRecord(kept_as or id_, "", 0.0, "m", {}, (), "msg")
        self.closed = 0
        self.recording = journal.record(record, self._close)
        self.log = ResponseLog(
            id_,
            on_cancel=lambda _: None,
            on_abandoned=lambda _: None,
            on_broken=self.broken.append,
            recorder=self.recording,
        )

    def _close(self) -> None:
        self.closed += 1


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def journal_on(disk: Any) -> Journal:
    return Journal(disk, Sweeper(disk, Retention(None, None)))


async def test_a_reader_sees_an_event_only_after_its_commit() -> None:
    disk = Disk()
    stored = Stored(journal_on(disk))
    await stored.recording.begin(stored.log)
    reader = stored.log.reader()
    disk.open.clear()
    stored.log.append(delta("a"))
    first = asyncio.ensure_future(anext(reader))
    await settle()
    assert not first.done() and stored.log.history() == []
    disk.open.set()
    assert await first == (1, delta("a"))


async def test_what_happens_before_the_record_is_kept_is_held_back_and_then_kept() -> None:
    disk = Disk()
    stored = Stored(journal_on(disk))
    stored.log.append(Started(3))
    await settle()
    assert disk.committed == []
    await stored.recording.begin(stored.log)
    assert await anext(stored.log.reader()) == (1, Started(3))
    assert disk.committed == [[Append("r", 1, Started(3))]]


async def test_all_responses_of_a_step_share_a_commit() -> None:
    disk = Disk()
    journal = journal_on(disk)
    many = [Stored(journal, f"r{index}") for index in range(16)]
    for stored in many:
        await stored.recording.begin(stored.log)
    for stored in many:
        stored.log.append(delta("x"))
    await journal.settle()
    assert len(disk.committed) == 1 and len(disk.committed[0]) == 16


async def test_the_end_is_kept_with_all_that_was_said() -> None:
    disk = Disk()
    journal = journal_on(disk)
    stored = Stored(journal)
    await stored.recording.begin(stored.log)
    for event in (Started(3), delta("Hel"), delta("lo"), END):
        stored.log.append(event)
    await journal.settle()
    assert stored.log.closed
    end = disk.committed[-1][-1]
    assert isinstance(end, End) and end.outcome.text == "Hello" and end.outcome.status is Status.COMPLETED


async def test_a_store_that_fails_ends_the_stream_with_what_was_kept_and_an_error() -> None:
    disk = Disk()
    journal = journal_on(disk)
    stored = Stored(journal)
    await stored.recording.begin(stored.log)
    stored.log.append(delta("kept"))
    await journal.settle()
    disk.error = StoreFull("The store is full.")
    stored.log.append(delta(" lost"))
    stored.log.append(END)
    await journal.settle()
    assert [type(event) for _, event in stored.log.history()] == [TextDelta, Failed]
    assert stored.log.history()[0] == Numbered(1, delta("kept"))
    assert [error.code for error in stored.broken] == ["store_full"]


async def test_a_store_that_is_full_is_swept_and_asked_once_more() -> None:
    disk = Disk()
    stored = Stored(journal_on(disk))
    disk.error, disk.sweepable = StoreFull("Full."), True
    await stored.recording.begin(stored.log)
    disk.error = StoreFull("Full.")
    stored.log.append(delta("kept"))
    assert await anext(stored.log.reader()) == (1, delta("kept"))
    assert (disk.begun, disk.sweeps) == (["r"], 2)


async def test_a_store_that_failed_otherwise_is_not_swept() -> None:
    disk = Disk()
    stored = Stored(journal_on(disk))
    disk.error, disk.sweepable = StoreError("Gone."), True
    with pytest.raises(StoreError):
        await stored.recording.begin(stored.log)
    assert not disk.sweeps


async def test_what_another_process_has_ended_ends_alone_whatever_it_is_kept_as() -> None:
    disk = Disk()
    journal = journal_on(disk)
    ended, other = Stored(journal, "a", kept_as="elsewhere"), Stored(journal, "b")
    for stored in (ended, other):
        await stored.recording.begin(stored.log)
    disk.ended.add("elsewhere")
    ended.log.append(delta("lost"))
    other.log.append(delta("kept"))
    await settle()
    assert [error.code for error in ended.broken] == ["store_unavailable"]
    assert await anext(other.log.reader()) == (1, delta("kept"))
    assert not other.broken
    await journal.settle()


async def test_a_record_that_is_refused_ends_the_log_and_raises() -> None:
    disk = Disk()
    disk.error = ConversationBusy("Busy.")
    stored = Stored(journal_on(disk))
    stored.log.append(Started(1))
    with pytest.raises(ConversationBusy):
        await stored.recording.begin(stored.log)
    assert stored.log.closed and isinstance(stored.log.history()[-1].event, Failed)


async def test_one_failed_commit_does_not_touch_who_comes_later() -> None:
    disk = Disk()
    journal = journal_on(disk)
    first, second = Stored(journal, "a"), Stored(journal, "b")
    await first.recording.begin(first.log)
    disk.error = StoreFull("Full.")
    first.log.append(delta("x"))
    await journal.settle()
    disk.error = None
    await second.recording.begin(second.log)
    second.log.append(END)
    await journal.settle()
    assert first.log.closed and second.log.history() == [Numbered(1, END)]


async def test_an_end_that_could_not_be_kept_is_kept_once_the_store_takes_it() -> None:
    disk = Disk()
    journal = journal_on(disk)
    stored = Stored(journal)
    await stored.recording.begin(stored.log)
    stored.log.append(delta("kept"))
    await journal.settle()
    disk.error = StoreFull("The store is full.")
    stored.log.append(delta(" lost"))
    await settle()
    assert stored.log.closed
    assert stored.closed < 1
    with pytest.raises(StoreFull):
        await journal.repair()
    disk.error = None
    await journal.repair()
    append, end = disk.committed[-1]
    assert isinstance(append, Append) and append.number == 2 and isinstance(append.event, Failed)
    assert isinstance(end, End) and end.outcome.status is Status.FAILED and end.outcome.text == "kept"
    assert stored.closed == 1
    await journal.repair()
    await journal.settle()
    assert len(disk.committed) == 2 and stored.closed == 1


async def test_an_end_that_did_not_fit_is_kept_when_something_may_go() -> None:
    disk = Disk()
    journal = journal_on(disk)
    stored = Stored(journal)
    await stored.recording.begin(stored.log)
    disk.error = StoreFull("The store is full.")
    stored.log.append(delta("lost"))
    await settle()
    assert stored.log.closed and stored.closed < 1
    disk.sweepable = True
    await journal.repair()
    assert stored.closed == 1 and len(disk.committed) == 1
    await journal.settle()


async def test_the_store_is_asked_again_by_itself() -> None:
    disk = Disk()
    journal = journal_on(disk)
    stored = Stored(journal)
    await stored.recording.begin(stored.log)
    disk.error = StoreFull("The store is full.")
    stored.log.append(END)
    await settle()
    disk.error = None
    async with asyncio.timeout(10):
        while not stored.closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(disk.committed) == 1


async def test_an_end_comes_behind_what_was_kept_without_an_answer() -> None:
    disk = Disk()
    journal = journal_on(disk)
    stored = Stored(journal)
    await stored.recording.begin(stored.log)
    disk.error, disk.carried_out = StoreError("The connection broke."), True
    stored.log.append(delta("unheard of"))
    await settle()
    assert stored.log.closed and len(stored.log.events) == 1
    disk.error = None
    await journal.repair()
    append, end = disk.committed[-1]
    assert isinstance(append, Append) and append.number == 2
    assert isinstance(end, End) and end.outcome.text == "unheard of"
    await journal.settle()
