"""Keeping the events of stored responses: they are shown to readers once the transaction that holds them has committed.

Everything that one step of the engine brought, for all responses, goes in one transaction; what comes while that is
under way goes in the next. If one fails, the responses in it (where some are its cause, only those) end as failed with
what was committed before; that end is kept as soon as the store takes it, and until then they count as open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

from causerie.chat.log import ResponseLog
from causerie.chat.records import ResponseRecord, outcome_of
from causerie.chat.store import Append, End, EndedElsewhere, Store, Write
from causerie.chat.sweeper import Sweeper
from causerie.errors import CauserieError, StoreError
from causerie.types import Event, Failed, Finished

logger = logging.getLogger("causerie.store")

_FIRST_REPAIR = 0.5
_LONGEST_PAUSE = 30.0
"""Seconds after which the store is asked again whether it takes the ends that it could not keep; doubled each time."""


class Recording:
    """The events of one response on their way to the store; the recorder of its log. Made by ``Journal.record``."""

    def __init__(
        self, journal: Journal, record: ResponseRecord, on_closed: Callable[[], None], behind: str | None
    ) -> None:
        self.record = record
        self._behind = behind
        self.on_closed = on_closed
        self._journal = journal
        self._held: list[_Entry] | None = []

    @property
    def begun(self) -> bool:
        """Whether the store has the record."""
        return self._held is None

    def add(self, log: ResponseLog, number: int, event: Event) -> None:
        writes: list[Write] = [Append(self.record.id, number, event)]
        if isinstance(event, Finished | Failed):
            outcome = outcome_of(log.events, log.ended_at)
            assert outcome is not None
            writes.append(End(self.record.id, outcome))
        entries = [_Entry(self, log, number, write) for write in writes]
        if self._held is None:
            self._journal._add(entries)
        else:
            self._held += entries

    async def begin(self, log: ResponseLog) -> None:
        """Keep the record, and then what has happened meanwhile. Raises what ``Store.begin`` raises; the log then
        ends as failed.

        Whoever waits for it may be cancelled: a store that has begun does not stop, so it is brought to its end.
        """
        beginning = self._journal._in_background(self._begin(log))
        await asyncio.wait({beginning})
        beginning.result()

    async def _begin(self, log: ResponseLog) -> None:
        try:
            journal = self._journal
            await journal._sweeper.with_room(partial(journal._store.begin, self.record, self._behind))
        except BaseException as error:
            self._held = []
            log.break_off(error if isinstance(error, CauserieError) else StoreError("It could not be kept."))
            self.on_closed()
            raise
        held, self._held = self._held, None
        self._journal._add(held or [])


class _Entry(NamedTuple):
    recording: Recording
    log: ResponseLog
    number: int
    write: Write


class Journal:
    """Belongs to one event loop and writes to one store, a transaction at a time; ``sweeper`` makes room there."""

    def __init__(self, store: Store, sweeper: Sweeper) -> None:
        self._store = store
        self._sweeper = sweeper
        self._pending: list[_Entry] = []
        self._beginning: set[asyncio.Task[None]] = set()
        self._writing: asyncio.Task[None] | None = None
        self._open_ends: dict[ResponseLog, Recording] = {}
        self._repair = asyncio.Lock()
        self._repairing: asyncio.Task[None] | None = None

    def record(
        self, record: ResponseRecord, on_closed: Callable[[], None] = lambda: None, *, behind: str | None = None
    ) -> Recording:
        """``on_closed`` is called when the response's end can be seen by readers, and is in the store. For ``behind``
        see ``Store.begin``.
        """
        return Recording(self, record, on_closed, behind)

    async def settle(self) -> None:
        """Wait until all is committed, or has failed to be; what failed is tried once more."""
        while self._beginning:
            await asyncio.wait(self._beginning)
        while self._writing is not None:
            await asyncio.wait({self._writing})
        if self._repairing is not None:
            self._repairing.cancel()
            await asyncio.wait({self._repairing})
        with contextlib.suppress(StoreError):
            await self.repair()

    async def repair(self) -> None:
        """Keep the ends of responses that the store failed on. Raises StoreError while it still fails."""
        async with self._repair:
            for log, recording in list(self._open_ends.items()):
                found = await self._store.response(recording.record.owner, recording.record.id)
                if found is not None and found.outcome is None:
                    try:
                        writes = await self._end_of(recording.record, log)
                        await self._sweeper.with_room(partial(self._store.write, writes))
                    except StoreError:
                        raise
                    except Exception:  # Asking again would change nothing.
                        logger.exception("the end of response %s cannot be kept", log.id)
                del self._open_ends[log]
                recording.on_closed()

    def _in_background(self, beginning: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(beginning)
        self._beginning.add(task)
        task.add_done_callback(self._begun)
        return task

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        if not task.cancelled():
            task.exception()  # Looked at: perhaps nobody waits for it any more.

    def _add(self, entries: list[_Entry]) -> None:
        self._pending += entries
        if self._writing is None and self._pending:
            # The task runs when everything of this turn of the loop, so the whole step, has been added.
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                await self._commit(batch)
        finally:
            self._writing = None

    async def _commit(self, batch: list[_Entry]) -> None:
        try:
            writes = [entry.write for entry in batch]
            await self._sweeper.with_room(partial(self._store.write, writes))
        except EndedElsewhere as error:
            self._pending = [*batch, *self._pending]
            self._lose([entry for entry in batch if entry.recording.record.id in error.responses], error)
        except Exception as error:
            if not isinstance(error, StoreError):
                logger.exception("the store failed in an unforeseen way")
                error = StoreError("What keeps responses has failed; this one was not kept to its end.")
            self._lose(batch, error)
        else:
            for log, (recording, _, number, _) in {entry.log: entry for entry in batch}.items():
                log.committed(number)
                if log.closed:
                    recording.on_closed()

    def _lose(self, entries: list[_Entry], error: StoreError) -> None:
        lost = {entry.log: entry.recording for entry in entries}
        logger.error("%d responses end as failed: %s", len(lost), error)
        self._pending = [entry for entry in self._pending if entry.log not in lost]
        for log in lost:
            log.break_off(error)
        self._open_ends |= lost
        if self._repairing is None or self._repairing.done():
            self._repairing = asyncio.create_task(self._keep_repairing())

    async def _end_of(self, record: ResponseRecord, log: ResponseLog) -> list[Write]:
        """The terminal event, and the outcome, of a log that was broken off.

        They come behind what the store has, which may be more than it could tell: where the connection to it broke, the
        last transaction may have been carried out.
        """
        kept = [event for _, event in await self._store.events(record.owner, record.id)]
        outcome = outcome_of([*kept, log.events[-1]], log.ended_at)
        assert outcome is not None
        return [Append(record.id, len(kept) + 1, log.events[-1]), End(record.id, outcome)]

    async def _keep_repairing(self) -> None:
        pause = _FIRST_REPAIR
        while self._open_ends:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            with contextlib.suppress(StoreError):
                await self.repair()
