"""Removing from the store what is too old, or too much."""

from __future__ import annotations

import asyncio
import logging
import time

from causerie.chat.store import Retention, Store
from causerie.errors import StoreError

logger = logging.getLogger("causerie.store")

SWEEP_SECONDS = 600.0
"""Between two looks at what is too old."""


class Sweeper:
    """Sweeps an open store at once, and then every ``SWEEP_SECONDS``."""

    def __init__(self, store: Store, retention: Retention) -> None:
        self._store = store
        self._retention = retention
        self._sweeping: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SWEEP_SECONDS, self.start)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = loop.create_task(self._sweep())

    async def stop(self) -> None:
        """Safe to call twice, and without ``start``."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait({self._sweeping})

    async def _sweep(self) -> None:
        try:
            gone = await self._store.sweep(time.time(), self._retention)
        except StoreError as error:
            logger.error("nothing old could be removed: %s", error)
        else:
            if gone:
                logger.info("%d old responses and conversations were removed", gone)
