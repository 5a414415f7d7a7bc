"""One timer per connection that answers: it sees a client that takes nothing, and silence worth breaking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pulse:
    """Call ``begin`` before each ``send`` and ``end`` after it: two stores each, and no timer is moved for them.

    ``on_stuck`` is called once if one ``send`` takes ``send_timeout`` seconds. ``on_silence`` is called whenever
    none began for ``silence`` seconds; it is expected to send something.
    """

    __slots__ = ("_busy", "_loop", "_on_silence", "_on_stuck", "_send_timeout", "_silence", "_since", "_timer")

    def __init__(
        self,
        send_timeout: float,
        on_stuck: Callable[[], None],
        silence: float | None = None,
        on_silence: Callable[[], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._send_timeout = send_timeout
        self._on_stuck = on_stuck
        self._silence = silence
        self._on_silence = on_silence
        self._busy = False
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._arm(self._period)

    @property
    def _period(self) -> float:
        return self._send_timeout if self._silence is None else min(self._silence, self._send_timeout)

    def begin(self) -> None:
        self._since = self._loop.time()
        self._busy = True

    def end(self) -> None:
        self._busy = False

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        quiet = self._loop.time() - self._since
        if self._busy:
            if quiet >= self._send_timeout:
                self._timer = None
                self._on_stuck()
            else:
                self._arm(self._send_timeout - quiet)
            return
        left = self._period
        if self._silence is not None and self._on_silence is not None:
            if quiet >= self._silence:
                self._on_silence()
            else:
                left = min(left, self._silence - quiet)
        self._arm(left)
