"""Keeping the events of stored responses: they are shown to readers once the transaction that holds them has committed.

Everything that one step of the engine brought, for all responses, goes in one transaction; what comes while that is
under way goes in the next. If one fails, the responses in it end as failed with what was committed before.
"""

from __future__ import annotations

import asyncio
import logging
import time

from causerie.chat.log import ResponseLog
from causerie.chat.records import ResponseRecord, outcome_of
from causerie.chat.store import Append, End, Store, Write
from causerie.errors import StoreError
from causerie.types import Event, Failed, Finished

logger = logging.getLogger("causerie.store")


class Recording:
    """The events of one response on their way to the store; the recorder of its log. Made by ``Journal.record``."""

    def __init__(self, journal: Journal, record: ResponseRecord) -> None:
        self.record = record
        self._journal = journal
        self._held: list[tuple[ResponseLog, int, Write]] | None = []

    def add(self, log: ResponseLog, number: int, event: Event) -> None:
        writes: list[Write] = [Append(log.id, number, event)]
        if isinstance(event, Finished | Failed):
            outcome = outcome_of(log.events, time.time())
            assert outcome is not None
            writes.append(End(log.id, outcome))
        entries = [(log, number, write) for write in writes]
        if self._held is None:
            self._journal._add(entries)
        else:
            self._held += entries

    async def begin(self, log: ResponseLog) -> None:
        """Keep the record, and then what has happened meanwhile. Raises what ``Store.begin`` raises; the log then
        ends as failed."""
        try:
            await self._journal._store.begin(self.record)
        except BaseException as error:
            self._held = []
            log.break_off(error if isinstance(error, StoreError) else StoreError("The response could not be kept."))
            raise
        held, self._held = self._held, None
        self._journal._add(held or [])


class Journal:
    """Belongs to one event loop and writes to one store, a transaction at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: list[tuple[ResponseLog, int, Write]] = []
        self._writing: asyncio.Task[None] | None = None

    def record(self, record: ResponseRecord) -> Recording:
        return Recording(self, record)

    async def settle(self) -> None:
        """Wait until all is committed, or has failed to be."""
        while self._writing is not None:
            await asyncio.wait({self._writing})

    def _add(self, entries: list[tuple[ResponseLog, int, Write]]) -> None:
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

    async def _commit(self, batch: list[tuple[ResponseLog, int, Write]]) -> None:
        try:
            await self._store.write([write for _, _, write in batch])
        except Exception as error:
            if not isinstance(error, StoreError):
                logger.exception("the store failed in an unforeseen way")
                error = StoreError("What keeps responses has failed; this one was not kept to its end.")
            logger.error("%d responses end as failed: %s", len({log for log, _, _ in batch}), error)
            for log in {log: None for log, _, _ in batch}:
                self._pending = [entry for entry in self._pending if entry[0] is not log]
                log.break_off(error)
        else:
            for log, number in {log: number for log, number, _ in batch}.items():
                log.committed(number)
