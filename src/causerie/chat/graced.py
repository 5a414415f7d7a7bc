"""Streams that are not kept but may outlive their readers: read again where they are generated and, where processes
share a store, from any of them.

In a shared store such a stream is a record that expires. It belongs to an owner that no key can be, under an id made of
its own and its owner's: so nothing finds it that looks for stored responses, and ids are each owner's own.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from causerie.chat.journal import Journal, Recording
from causerie.chat.log import EventReader, Numbered, ResponseLog, read_out
from causerie.chat.records import ResponseRecord
from causerie.chat.service import ChatService
from causerie.chat.store import Store
from causerie.chat.stored_reader import Kept
from causerie.errors import ResponseNotFound, StoreError, StreamExpired
from causerie.types import CancelCause, Failed, Finished, GenerationRequest


@dataclass(frozen=True, slots=True)
class GracedStream:
    """A stream, to be read again from anywhere."""

    id: str
    created: int
    n: int
    logprobs: bool
    """Whether they were asked for."""
    history: list[Numbered]
    """All so far, unmerged."""
    reader: Callable[[int], EventReader]
    """From behind an event's number."""

    @property
    def ended(self) -> bool:
        return bool(self.history) and isinstance(self.history[-1].event, Finished | Failed)


class GracedStreams:
    """Belongs to one service, and to the store and the journal of its archive. Runs on the service's event loop."""

    def __init__(self, service: ChatService, store: Store, journal: Journal, runner: str) -> None:
        self._service = service
        self._store = store
        self._journal = journal
        self._runner = runner
        self._live: dict[str, ResponseLog] = {}
        self._ended: deque[tuple[str, str]] = deque()

    async def create(self, request: GenerationRequest) -> ResponseLog:
        """``ChatService.create``, for what is not kept. What may outlive its readers is shared where that can be.

        Then it also raises StoreError, and DuplicateRequest for an id that another process or a recent stream has.
        """
        if not self._store.shared or request.on_disconnect.grace == 0:
            return await self._service.create(request)
        await self._make_room()
        await self._journal.repair()
        record = self._record(request)
        recording = self._journal.record(record, lambda: self._closed(recording, log))
        log = await self._service.create(request, recording)
        recording.record = replace(record, created=log.created)
        async with log.held():
            self._live[record.id] = log
            await recording.begin(log)
        return log

    async def find(self, owner: str, id_: str) -> GracedStream:
        """Raises StreamExpired or ResponseNotFound, and StoreError where it may be another process's."""
        try:
            log, request = self._service.streams.find(owner, id_)
        except (ResponseNotFound, StreamExpired):
            found = await self._shared(owner, id_)
            if found is None:
                raise
            return found
        logprobs = request.sampling.logprobs is not None
        return GracedStream(log.id, log.created, request.n, logprobs, log.history(), log.reader)

    async def cancel(self, owner: str, id_: str) -> bool:
        """Stop it, wherever it is generated; whether it was running. Raises what ``find`` raises."""
        try:
            log, _ = self._service.streams.find(owner, id_)
        except (ResponseNotFound, StreamExpired):
            stream = await self.find(owner, id_)
            if not stream.ended:
                await self._store.ask_cancel(_place(owner, id_)[1])
                await read_out(stream.reader(len(stream.history)))
            return not stream.ended
        running = not log.ended
        log.cancel(CancelCause.STOPPED)
        return running

    def live(self, record_id: str) -> ResponseLog | None:
        """What this process generates under that id of the store's."""
        return self._live.get(record_id)

    async def _shared(self, owner: str, id_: str) -> GracedStream | None:
        if not self._store.shared:
            return None
        place = _place(owner, id_)
        record = await self._store.response(*place)
        if record is None:
            return None
        kept = Kept(self._store, *place, await self._store.events(*place))
        n, logprobs = record.parameters["n"], record.parameters["logprobs"]
        assert isinstance(n, int)
        return GracedStream(id_, int(record.created), n, bool(logprobs), list(kept.events), kept.reader)

    async def _make_room(self) -> None:
        """As many ended ones are there, at most, as ``Streams`` has: each process sees to its own."""
        while len(self._ended) > self._service.streams.capacity:
            with suppress(StoreError):  # It expires anyway.
                await self._store.delete_response(*self._ended.popleft())

    def _closed(self, recording: Recording, log: ResponseLog) -> None:
        record = recording.record
        if self._live.get(record.id) is log:  # And not one that came after it, with its id.
            del self._live[record.id]
        if recording.begun:
            self._ended.append((record.owner, record.id))
        else:
            self._service.streams.forget(log.owner, log.id)  # Its id may be another's.

    def _record(self, request: GenerationRequest) -> ResponseRecord:
        owner, id_ = _place(request.owner, request.id)
        return ResponseRecord(
            id=id_,
            owner=owner,
            created=time.time(),
            model=self._service.model_name,
            parameters={"n": request.n, "logprobs": request.sampling.logprobs is not None},
            input=(),
            output_id="",
            runner=self._runner,
            expires=self._service.settings.resume_window,
        )


def _place(owner: str, id_: str) -> tuple[str, str]:
    """The owner and the id that a stream has in the store."""
    return f"~{owner}", "stream_" + hashlib.sha256(f"{owner}\0{id_}".encode()).hexdigest()
