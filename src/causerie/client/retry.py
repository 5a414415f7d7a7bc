"""Coming back after a cut: how often, and for how long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar

from causerie.client.server import Cut, Patience
from causerie.errors import CauserieError, ConnectionLost, DuplicateRequest, Overloaded

T = TypeVar("T")

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0

_PASSING = (Cut, ConnectionLost, Overloaded, DuplicateRequest)
"""What is no final answer to somebody who comes back: the server starts anew, or still begins what was asked."""


class Opening(Protocol):
    """Something that is read over a connection, and knows how far it has been read."""

    def open(self) -> AsyncGenerator[str, None]:
        """Connect and go on where it stopped. The first piece is empty, and says that it is connected; every other is
        an event, which may have no text. Raises Cut."""
        ...


class _Retry:
    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._lost: float | None = None
        self._connected: float | None = None
        self._delay = _FIRST_DELAY
        self._cut = False

    def connected(self) -> None:
        """Which is no progress yet: a proxy may cut every answer behind its head."""
        self._connected = asyncio.get_running_loop().time()

    def progressed(self) -> None:
        self._lost = None
        self._delay = _FIRST_DELAY

    async def wait(self, error: Cut | CauserieError) -> None:
        """Until the next attempt. Raises the error where there is to be none."""
        self._cut = self._cut or isinstance(error, Cut)
        if not self._cut:
            raise error
        now = asyncio.get_running_loop().time()
        if self._connected is not None:
            self._stayed(now - self._connected)
        self._lost = now if self._lost is None else self._lost
        if now + self._delay > self._lost + self._patience.reconnect:
            raise ConnectionLost(
                f"The connection was lost and not found again within {self._patience.reconnect:g} seconds: {error}"
            ) from error
        await asyncio.sleep(self._delay * random.uniform(0.5, 1.0))
        self._delay = min(2 * self._delay, _LONGEST_DELAY)

    def _stayed(self, seconds: float) -> None:
        """It was connected for so long. To wait there for a first token is not to be lost."""
        self._connected = None
        if seconds >= _LONGEST_DELAY:
            self.progressed()
        elif self._lost is not None:
            self._lost += seconds


async def picked_up(stream: Opening, patience: Patience) -> AsyncGenerator[str, None]:
    """All of a stream, over as many connections as it takes. Raises its error, or ConnectionLost."""
    retry = _Retry(patience)
    while True:
        try:
            async with aclosing(stream.open()) as pieces:
                if await anext(pieces, None) is not None:
                    retry.connected()
                async for piece in pieces:
                    retry.progressed()
                    yield piece
            return
        except _PASSING as error:
            await retry.wait(error)


async def repeated(call: Callable[[], Awaitable[T]], patience: Patience) -> T:
    """The outcome of a call that does no harm when it is made twice."""
    retry = _Retry(patience)
    while True:
        try:
            return await call()
        except _PASSING as error:
            await retry.wait(error)
