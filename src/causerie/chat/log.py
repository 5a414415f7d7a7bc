"""The event log of one response: one writer, any number of readers, each with its own cursor.

Everything runs on one event loop. The writer never waits for a reader, and what a reader has not taken yet
stays in the log, whose length the answer's length bounds. The log is never merged; a reader that lags is
given everything it missed as one event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

from causerie.errors import CauserieError
from causerie.types import CancelCause, Event, Failed, Finished, Part, TextDelta


class Numbered(NamedTuple):
    """An event under its number: 1 for a log's first, then one more each. A reader resumes after a number."""

    number: int
    event: Event


class Acknowledged(Protocol):
    """A response whose client says how much of its text it has shown. Its events are numbered as its readers'."""

    @property
    def ended(self) -> bool: ...

    @property
    def acknowledged(self) -> int | None:
        """Characters of its text that were shown, up to the end; None if its client says nothing."""
        ...

    def event_at(self, number: int) -> Event: ...

    def text_end(self, number: int) -> int:
        """Characters of the text up to event ``number``; of a response with one choice."""
        ...

    async def acknowledge(self, text_end: int) -> bool:
        """So many characters were shown; never fewer than before. False if it has ended: that changes nothing."""
        ...


class TextEnds:
    """How many characters of a response's text there are up to each of its events."""

    def __init__(self) -> None:
        self._ends = [0]

    @property
    def counted(self) -> int:
        return len(self._ends) - 1

    def count(self, events: Iterable[Event]) -> None:
        """Take in the next events."""
        for event in events:
            said = sum(len(part.text) for part in event.parts) if isinstance(event, TextDelta) else 0
            self._ends.append(self._ends[-1] + said)

    def __getitem__(self, number: int) -> int:
        return self._ends[number]


class Recorder(Protocol):
    """Whoever keeps a log's events. It calls ``committed`` or ``break_off`` in its own time."""

    def add(self, log: ResponseLog, number: int, event: Event) -> None: ...


class ResponseLog:
    """What happened to one response so far, and what is still to come.

    With a ``recorder`` readers see an event only once it is ``committed``: what a client has seen is kept.
    ``on_cancel`` is told once, when the response is cancelled before it ended. ``on_abandoned`` is told each
    time the last reader leaves; what that means is its policy (leaving and stopping are two verbs).
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        *,
        owner: str = "",
        on_cancel: Callable[[CancelCause], None],
        on_abandoned: Callable[[ResponseLog], None],
        on_broken: Callable[[CauserieError], None] = lambda _: None,
        recorder: Recorder | None = None,
        outlives_readers: bool = False,
    ) -> None:
        self.id = id
        self.owner = owner
        self.outlives_readers = outlives_readers
        """Whether it may go on without any; then one that is slow does not end it either."""
        self.created = int(time.time())
        self.ended_at = 0.0
        """Unix time of the terminal event, once it is there."""
        self.acknowledged: int | None = None
        """Characters of its text that its client says to have shown, up to the end; None if it says nothing."""
        self._text_ends = TextEnds()
        self._events: list[Event] = []
        self._visible = 0
        self._recorder = recorder
        self._on_broken = on_broken
        self._readers: set[Reader] = set()
        self._holds = 0
        self._left_while_held = False
        self._on_cancel = on_cancel
        self._on_abandoned = on_abandoned
        self._cancelled = False

    def __len__(self) -> int:
        return len(self._events)

    @property
    def ended(self) -> bool:
        """Whether the terminal event is there, seen by readers or not yet."""
        return bool(self._events) and isinstance(self._events[-1], Finished | Failed)

    @property
    def closed(self) -> bool:
        """Whether readers can see the terminal event."""
        return self.ended and self._visible == len(self._events)

    @property
    def events(self) -> Sequence[Event]:
        """All so far, also what readers cannot see yet."""
        return self._events

    def history(self) -> list[Numbered]:
        """What readers can see so far, unmerged."""
        return [Numbered(number, event) for number, event in enumerate(self._events[: self._visible], 1)]

    @property
    def reader_count(self) -> int:
        return len(self._readers)

    def append(self, event: Event) -> int:
        """Add the next event and wake the readers; returns its number. Nothing may follow the terminal event."""
        if self.ended:
            raise RuntimeError(f"response {self.id} has ended; {type(event).__name__} came after its terminal event")
        self._events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended_at = time.time()
        number = len(self._events)
        if self._recorder is None:
            self._show(number)
        else:
            self._recorder.add(self, number, event)
        return number

    def committed(self, number: int) -> None:
        """The recorder has kept everything up to ``number``."""
        if self._recorder is not None:
            self._show(number)

    def break_off(self, error: CauserieError) -> None:
        """The recorder cannot keep what is not committed yet: nobody sees that, and the log ends as failed."""
        if self._recorder is not None and not self.closed:
            self._recorder = None
            del self._events[self._visible :]
            self._on_broken(error)
            if not self.ended:
                self.append(Failed(error, kept=self.acknowledged))

    def event_at(self, number: int) -> Event:
        """See ``Acknowledged``."""
        return self._events[number - 1]

    def text_end(self, number: int) -> int:
        """See ``Acknowledged``."""
        self._text_ends.count(self._events[self._text_ends.counted : number])
        return self._text_ends[number]

    async def acknowledge(self, text_end: int) -> bool:
        """See ``Acknowledged``."""
        self.was_shown(text_end)
        return not self.ended

    def was_shown(self, text_end: int) -> None:
        """``acknowledge``, for another process."""
        if not self.ended:
            self.acknowledged = max(text_end, self.acknowledged or 0)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nobody who finds it meanwhile ends it by leaving, as its only reader.

        Whoever leaves this well takes a reader at once, unless it goes on without; whoever does not has left it.
        """
        self._holds += 1
        try:
            yield
        except BaseException:
            self._holds -= 1
            if not self._readers:
                self._on_abandoned(self)
            raise
        self._holds -= 1
        if self._left_while_held and not self._readers and self.outlives_readers:
            self._on_abandoned(self)

    def _show(self, number: int) -> None:
        self._visible = number
        for reader in self._readers:
            reader._wake()

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
            if not self._readers and not self._holds:
                self._on_abandoned(self)
            self._left_while_held = self._left_while_held or self._holds > 0


class EventReader(Protocol):
    """One consumer's way through a response's events, whether they come from a log or from a store."""

    def __aiter__(self) -> EventReader: ...

    async def __anext__(self) -> Numbered: ...

    async def aclose(self) -> None: ...

    @property
    def at_end(self) -> bool:
        """Whether the terminal event is behind it."""
        ...

    def give_up(self) -> None:
        """Its client takes nothing."""


async def read_out(reader: EventReader) -> None:
    """Wait for the end, then leave."""
    try:
        async for _ in reader:
            pass
    finally:
        await reader.aclose()


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
        log = self._log
        while self._cursor >= log._visible:
            if log.closed or self not in log._readers:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take(log._events, log._visible)

    def _take(self, events: list[Event], visible: int) -> Numbered:
        first = events[self._cursor]
        end = self._cursor + 1
        if isinstance(first, TextDelta):
            while end < visible and isinstance(events[end], TextDelta):
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

    @property
    def at_end(self) -> bool:
        return self._log.closed and self._cursor >= self._log._visible

    def give_up(self) -> None:
        """Its client takes nothing: end the response, unless that may go on without readers, or others read it."""
        if not self._log.outlives_readers and self._log.reader_count <= 1:
            self._log.cancel(CancelCause.SLOW_READER)

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
