"""Removing from the store what is too old, or too much: every now and then, and at once when it is full."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from causerie.chat.store import Retention, Store
from causerie.errors import StoreError, StoreFull

T = TypeVar("T")

logger = logging.getLogger("causerie.store")

SWEEP_SECONDS = 600.0
"""Between two looks at what is too old."""


class Sweeper:
    """Sweeps an open store at once, then every ``SWEEP_SECONDS``, and when it is full; once at a time."""

    def __init__(self, store: Store, retention: Retention) -> None:
        self._store = store
        self._retention = retention
        self._sweeping: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self.start)
        self._begin()

    async def with_room(self, write: Callable[[], Awaitable[T]]) -> T:
        """Do what adds to the store; if it is full, once more after a sweep. Raises what ``write`` raises."""
        try:
            return await write()
        except StoreFull:
            await asyncio.wait({self._begin()})
        return await write()

    async def stop(self) -> None:
        """Safe to call twice, and without ``start``."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait({self._sweeping})

    def _begin(self) -> asyncio.Task[None]:
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep())
        return self._sweeping

    async def _sweep(self) -> None:
        try:
            gone = await self._store.sweep(time.time(), self._retention)
        except StoreError as error:
            logger.error("nothing old could be removed: %s", error)
        else:
            if gone:
                logger.info("%d old responses and conversations were removed", gone)
