"""The event log of one response: one writer, any number of readers, each with its own cursor.

Everything runs on one event loop. The writer never waits for a reader, and what a reader has not taken yet
stays in the log, whose length the answer's length bounds. The log is never merged; a reader that lags is
given everything it missed as one event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from causerie.types import CancelCause, Event, Failed, Finished, Part, TextDelta


class Numbered(NamedTuple):
    """An event under its number: 1 for a log's first, then one more each. A reader resumes after a number."""

    number: int
    event: Event


class ResponseLog:
    """What happened to one response so far, and what is still to come.

    ``on_cancel`` is told once, when the response is cancelled before it ended. ``on_abandoned`` is told each
    time the last reader leaves; what that means is its policy (leaving and stopping are two verbs).
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        *,
        on_cancel: Callable[[CancelCause], None],
        on_abandoned: Callable[[ResponseLog], None],
    ) -> None:
        self.id = id
        self.created = int(time.time())
        self._events: list[Event] = []
        self._readers: set[Reader] = set()
        self._on_cancel = on_cancel
        self._on_abandoned = on_abandoned
        self._cancelled = False

    def __len__(self) -> int:
        return len(self._events)

    @property
    def ended(self) -> bool:
        """Whether the terminal event is there."""
        return bool(self._events) and isinstance(self._events[-1], Finished | Failed)

    @property
    def reader_count(self) -> int:
        return len(self._readers)

    def append(self, event: Event) -> int:
        """Add the next event and wake the readers; returns its number. Nothing may follow the terminal event."""
        if self.ended:
            raise RuntimeError(f"response {self.id} has ended; {type(event).__name__} came after its terminal event")
        self._events.append(event)
        for reader in self._readers:
            reader._wake()
        return len(self._events)

    def reader(self, after: int = 0) -> Reader:
        """A cursor that gives the events numbered above ``after``, those to come included."""
        reader = Reader(self, after)
        self._readers.add(reader)
        return reader

    def cancel(self, cause: CancelCause) -> None:
        """Ask for the end. The terminal event comes by itself; after it, and a second time, this does nothing."""
        if not self._cancelled and not self.ended:
            self._cancelled = True
            self._on_cancel(cause)

    def _leave(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            reader._wake()
            if not self._readers:
                self._on_abandoned(self)


class Reader:
    """An async iterator over a log's events, from a number on. One consumer; ends after the terminal event.

    Use it as an async context manager, or call ``aclose`` in a ``finally``: a reader that is dropped without
    it would keep its response running.
    """

    __slots__ = ("_cursor", "_log", "_waiter")

    def __init__(self, log: ResponseLog, after: int) -> None:
        self._log = log
        self._cursor = after
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> Numbered:
        events = self._log._events
        while self._cursor >= len(events):
            if self._log.ended or self not in self._log._readers:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take(events)

    def _take(self, events: list[Event]) -> Numbered:
        first = events[self._cursor]
        end = self._cursor + 1
        if isinstance(first, TextDelta):
            while end < len(events) and isinstance(events[end], TextDelta):
                end += 1
            missed = [event for event in events[self._cursor : end] if isinstance(event, TextDelta)]
            first = first if len(missed) == 1 else merge(missed)
        self._cursor = end
        return Numbered(end, first)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def aclose(self) -> None:
        """Leave. The response goes on or not as its policy says; safe to call twice."""
        self._log._leave(self)

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def merge(deltas: Iterable[TextDelta]) -> TextDelta:
    """One delta that says what ``deltas`` said in turn: for each choice, its text and tokens joined in order."""
    grouped: dict[int, list[Part]] = {}
    for delta in deltas:
        for part in delta.parts:
            grouped.setdefault(part.index, []).append(part)
    return TextDelta(tuple(_join(grouped[index]) for index in sorted(grouped)))


def _join(parts: list[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[-1],
        text="".join(part.text for part in parts),
        tokens=sum(part.tokens for part in parts),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
    )
