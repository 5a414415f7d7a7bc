"""Streams that outlive their readers: who may come back to one, and for how long."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from causerie.chat.log import ResponseLog
from causerie.errors import ResponseNotFound, StreamExpired
from causerie.types import CancelCause, GenerationRequest

FOLLOWED = 10.0
"""Seconds for which one that reads through another process is taken to be there still; it says so oftener."""
MAX_EXPIRED = 4096
"""Ids that are remembered as expired, so that whoever comes back late is told so."""


class Kept(NamedTuple):
    log: ResponseLog
    request: GenerationRequest


class Streams:
    """The logs of responses with a policy of their own for lost readers. Runs on the event loop.

    ``window`` is how long, in seconds, a log can still be read once it has ended; at most ``capacity`` ended ones wait.
    """

    def __init__(self, *, window: float, capacity: int) -> None:
        self._window = window
        self.capacity = capacity
        self._kept: dict[tuple[str, str], Kept] = {}
        self._ended: OrderedDict[tuple[str, str], asyncio.TimerHandle] = OrderedDict()
        self._graces: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._followed: dict[tuple[str, str], float] = {}
        self._expired: OrderedDict[tuple[str, str], None] = OrderedDict()

    def keep(self, log: ResponseLog, request: GenerationRequest) -> None:
        """From its creation on; there must be none of its id."""
        key = log.owner, log.id
        self._expired.pop(key, None)
        self._kept[key] = Kept(log, request)

    def has(self, owner: str, id_: str) -> bool:
        """Whether the id is that of a log that can be read: whoever comes back to it shall not find another."""
        return (owner, id_) in self._kept

    def find(self, owner: str, id_: str) -> Kept:
        """Raises StreamExpired for a log whose window is over, ResponseNotFound for any other that is not there."""
        key = owner, id_
        if key in self._kept:
            return self._kept[key]
        if key in self._expired:
            raise StreamExpired(f"The stream {id_[:64]!r} has ended, and can no longer be read again.")
        raise ResponseNotFound(f"There is no stream {id_[:64]!r} to read again.")

    def abandoned(self, log: ResponseLog) -> bool:
        """Its last reader has left; False if it is not kept here."""
        key = log.owner, log.id
        kept = self._kept.get(key)
        if kept is None or kept.log is not log:
            return False
        grace = kept.request.on_disconnect.grace
        if grace is not None and not log.ended:
            self._stop_grace(key)
            self._wait(log, grace, grace)
        return True

    def followed(self, log: ResponseLog) -> None:
        """Somebody reads it through another process."""
        key = log.owner, log.id
        if key in self._kept and not log.ended:
            self._followed[key] = asyncio.get_running_loop().time()

    def ended(self, log: ResponseLog) -> None:
        """It has its terminal event: from now on the window runs."""
        key = log.owner, log.id
        kept = self._kept.get(key)
        if kept is None or kept.log is not log or key in self._ended:
            return
        self._stop_grace(key)
        self._followed.pop(key, None)
        self._ended[key] = asyncio.get_running_loop().call_later(self._window, self._expire, key)
        if len(self._ended) > self.capacity:
            self._expire(next(iter(self._ended)))

    def forget(self, owner: str, id_: str) -> None:
        """It was never begun, or is deleted: from now on it is not there."""
        key = owner, id_
        self._kept.pop(key, None)
        self._followed.pop(key, None)
        self._stop_grace(key)
        if (timer := self._ended.pop(key, None)) is not None:
            timer.cancel()

    def drop(self, log: ResponseLog) -> None:
        """``forget`` it, unless its id is another's."""
        kept = self._kept.get((log.owner, log.id))
        if kept is not None and kept.log is log:
            self.forget(log.owner, log.id)

    def close(self) -> None:
        """Forget everything, timers too."""
        for timer in (*self._ended.values(), *self._graces.values()):
            timer.cancel()
        self._kept.clear()
        self._ended.clear()
        self._graces.clear()
        self._followed.clear()

    def _wait(self, log: ResponseLog, seconds: float, grace: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._see_who_came, log, grace)
        self._graces[log.owner, log.id] = timer

    def _see_who_came(self, log: ResponseLog, grace: float) -> None:
        key = log.owner, log.id
        del self._graces[key]
        if log.reader_count:
            return
        if key in self._followed:
            left = self._followed[key] + max(grace, FOLLOWED) - asyncio.get_running_loop().time()
            if left > 0:
                self._wait(log, left, grace)
                return
        log.cancel(CancelCause.CLIENT)

    def _stop_grace(self, key: tuple[str, str]) -> None:
        if (timer := self._graces.pop(key, None)) is not None:
            timer.cancel()

    def _expire(self, key: tuple[str, str]) -> None:
        self._ended.pop(key).cancel()
        del self._kept[key]
        self._expired[key] = None
        if len(self._expired) > MAX_EXPIRED:
            self._expired.popitem(last=False)
