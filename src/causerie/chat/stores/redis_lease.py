"""How the processes that share a Redis know of each other: leases that must be renewed, and channels."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping

from causerie.chat.stores.redis_calls import Calls, told_plainly
from causerie.errors import StoreError

logger = logging.getLogger("causerie.store")

_PREFIX = "causerie:lease:"


class Lease:
    """Says that this process lives, under a name that is never used again once it has lapsed.

    What was begun under a lapsed lease may be ended by anybody, so a process that was only paused gets a new one, and
    ``on_lapse`` is given the old. ``on_told`` has, by their names, the channels on which other processes tell this one
    of a response that it runs. ``on_renewed`` is called after each time that the lease was renewed.
    """

    def __init__(
        self,
        calls: Calls,
        seconds: float,
        on_told: Mapping[str, Callable[[str], None]],
        on_lapse: Callable[[str], Awaitable[None]],
        on_renewed: Callable[[], Awaitable[None]],
    ) -> None:
        self._calls = calls
        self._seconds = seconds
        self._process = secrets.token_hex(8)
        self._turn = 0
        self._channels = {f"causerie:{name}:{self._process}": told for name, told in on_told.items()}
        self._on_lapse = on_lapse
        self._on_renewed = on_renewed
        self._renewing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        return f"{self._process}:{self._turn}"

    async def start(self) -> None:
        await self._set(new=True)
        listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._listen(listening))]
        await listening

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            self._tasks = []
            with told_plainly():
                await self._calls.redis.delete(_PREFIX + self.name)

    async def renew(self) -> None:
        """Make it last again, under a new name if it has lapsed."""
        async with self._renewing:
            if await self._set(new=False):
                return
            lapsed = self.name
            self._turn += 1
            await self._set(new=True)
        logger.warning("this process did not reach Redis for %.1f s; what it was generating is given up", self._seconds)
        await self._on_lapse(lapsed)

    async def tell(self, channel: str, lease: str, message: str) -> bool:
        """Tell the process with that lease; whether it was heard."""
        with told_plainly():
            return bool(await self._calls.redis.publish(f"causerie:{channel}:{lease.partition(':')[0]}", message))

    async def lives(self, lease: str) -> bool:
        with told_plainly():
            return bool(await self._calls.redis.exists(_PREFIX + lease))

    async def _set(self, *, new: bool) -> bool:
        with told_plainly():
            name, milliseconds = _PREFIX + self.name, round(self._seconds * 1000)
            return bool(await self._calls.redis.set(name, b"", px=milliseconds, nx=new, xx=not new))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 5)
            try:
                await self.renew()
                await self._on_renewed()
            except StoreError as error:
                logger.warning("%s", error)

    async def _listen(self, listening: asyncio.Future[None]) -> None:
        while True:
            try:
                await self._hear(listening)
            except StoreError as error:
                if not listening.done():
                    listening.set_exception(error)
                    return
                logger.warning("%s", error)
            await asyncio.sleep(self._seconds / 5)

    async def _hear(self, listening: asyncio.Future[None]) -> None:
        async with self._calls.redis.pubsub() as channel:
            with told_plainly():
                await channel.subscribe(*self._channels)
            while True:
                with told_plainly():
                    message = await channel.get_message(timeout=self._seconds)
                if message is None:
                    continue
                if message["type"] == "subscribe" and not listening.done():
                    listening.set_result(None)
                if message["type"] == "message":
                    self._channels[message["channel"].decode()](message["data"].decode())
