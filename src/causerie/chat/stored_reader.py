"""Reading a response that this process does not generate: from the store, and as another process adds to it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence

from causerie.chat.log import EventReader, Numbered, TextEnds
from causerie.chat.store import Store
from causerie.errors import ResponseNotFound
from causerie.types import Event, Failed, Finished, TextDelta


class Kept:
    """What the store has of a response: ``events``, all so far. Makes readers of them and of what is still to come.

    It is ``Acknowledged``: what its client has shown, the process is told that generates it.
    """

    def __init__(
        self, store: Store, owner: str, id_: str, events: Sequence[Numbered], ended_at: float | None = None
    ) -> None:
        self.ended_at = ended_at
        """When the response ended, in Unix time; known at the latest once a reader has come to its end."""
        self._store = store
        self._owner = owner
        self._id = id_
        self._acknowledged: int | None = None
        self._text_ends = TextEnds()
        self.events: list[Numbered] = []
        self._take(events)

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1].event, Finished | Failed)

    @property
    def acknowledged(self) -> int | None:
        """As far as is known here: by an acknowledgement that was taken here, or that came with the last text."""
        return self._acknowledged

    def event_at(self, number: int) -> Event:
        return self.events[number - 1].event

    def text_end(self, number: int) -> int:
        self._text_ends.count(event for _, event in self.events[self._text_ends.counted : number])
        return self._text_ends[number]

    async def acknowledge(self, text_end: int) -> bool:
        """See ``Acknowledged``. One that meets the end on its way changes nothing, and True is returned all the same.

        Raises StoreError where it was not heard.
        """
        told = self._store.shared and await self._store.tell_acknowledged(self._id, text_end)
        if told:
            self._acknowledged = max(text_end, self._acknowledged or 0)
        return told

    def reader(self, after: int) -> EventReader:
        events = deque(event for event in self.events if event.number > after)
        return StoredReader(self, events, after)

    async def follow(self, after: int) -> list[Numbered]:
        """What comes behind number ``after``; nothing if the response was over by then."""
        if self.ended or not self._store.shared:
            return self.events[after:]
        found = await self._store.follow(self._owner, self._id, after)
        self._take(each for each in found if each.number > len(self.events))
        return found

    def _take(self, events: Iterable[Numbered]) -> None:
        for each in events:
            self.events.append(each)
            if isinstance(each.event, TextDelta) and each.event.acknowledged is not None:
                self._acknowledged = max(each.event.acknowledged, self._acknowledged or 0)

    async def see_end(self) -> None:
        if self.ended_at is None:
            found = await self._store.response(self._owner, self._id)
            # One that is gone by now has ended only just before.
            self.ended_at = time.time() if found is None or found.outcome is None else found.outcome.ended


class StoredReader:
    """An async iterator over stored events, unmerged; see ``log.EventReader``.

    Raises StoreError, and ResponseNotFound where the response is deleted before its end was read.
    """

    def __init__(self, kept: Kept, events: deque[Numbered], number: int) -> None:
        self._kept = kept
        self._events = events
        self._number = number
        self._ended = False
        self._left = False
        self._waiting: asyncio.Task[list[Numbered]] | None = None

    def __aiter__(self) -> StoredReader:
        return self

    async def __anext__(self) -> Numbered:
        if not self._ended and not self._left and not self._events:
            self._events.extend(await self._wait())
            if not self._events and not self._left:
                self._see_that_it_was_all()
        if self._ended or self._left:
            raise StopAsyncIteration
        first = self._events.popleft()
        self._number = first.number
        if isinstance(first.event, Finished | Failed):
            self._ended = True
            await self._kept.see_end()
        return first

    def _see_that_it_was_all(self) -> None:
        if not self._kept.ended:
            raise ResponseNotFound("The response was deleted before its end was read.", param="response_id")
        self._ended = True

    async def _wait(self) -> list[Numbered]:
        self._waiting = asyncio.ensure_future(self._kept.follow(self._number))
        try:
            return await self._waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._left and not (task and task.cancelling()):
                return []
            raise
        finally:
            self._waiting = None

    @property
    def at_end(self) -> bool:
        return self._ended

    def give_up(self) -> None:
        """Nothing to do: it is not this reader that keeps the response going."""

    async def aclose(self) -> None:
        """Leave; whoever waits for the next event is told that there is none."""
        self._left = True
        if self._waiting is not None:
            self._waiting.cancel()
