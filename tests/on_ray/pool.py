"""What stands for Ray Serve where the pool is tried without it: its streams, and how they break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RequestCancelledError

from causerie.ray.replica import EngineHost, Gain
from causerie.types import SamplingParams

Item = TypeVar("Item")


class Stream(Generic[Item]):
    """What Ray Serve has for a streaming call: it runs whether or not it is read, and raises what ended it."""

    def __init__(self, items: AsyncGenerator[Item]) -> None:
        self._said: asyncio.Queue[Item | BaseException] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(items))
        self._deaf = False

    async def _run(self, items: AsyncGenerator[Item]) -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    self._said.put_nowait(item)
            self._said.put_nowait(StopAsyncIteration())
        except RayError as error:
            self._said.put_nowait(error)
        except asyncio.CancelledError:
            self._said.put_nowait(RequestCancelledError())

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        item = await self._said.get()
        if isinstance(item, BaseException):
            raise item
        return item

    @property
    def ended(self) -> bool:
        return self._task.done()

    def cancel(self) -> None:
        if not self._deaf:
            self._task.cancel()

    def break_off(self, error: RayError, *, deaf: bool = False) -> None:
        """What is under way is read yet; then comes the error. ``deaf``: the other side goes on, and is never told."""
        self._said.put_nowait(error)
        self._deaf = deaf
        self.cancel()


class Replica:
    """A host, and how it is lost, if it is: after so many gains, or the channel alone."""

    def __init__(self, name: str, host: EngineHost) -> None:
        self.name = name
        self.host = host
        self.dies_after: int | None = None
        self.error: RayError = RayError()
        self.served: list[list[int]] = []
        self.calls: list[Stream[str]] = []
        self.channels: list[Stream[list[Gain]]] = []

    async def generate(
        self, channel: int, key: int, prompt: Sequence[int], sampling: SamplingParams
    ) -> AsyncGenerator[str]:
        if self.dies_after == 0:
            raise self.error
        self.served.append(list(prompt))
        yield self.name
        await self.host.generate("ingress", channel, key, prompt, sampling)

    async def prefill(self, prompt: Sequence[int], gently: bool) -> AsyncGenerator[tuple[str, int | None]]:
        if self.dies_after == 0:
            raise self.error
        yield self.name, await self.host.prefill(prompt, gently=gently)

    async def gains(self, number: int) -> AsyncGenerator[list[Gain]]:
        count = 0
        async with aclosing(self.host.gains("ingress", number)) as channel:
            async for gains in channel:
                yield gains
                count += len(gains)
                if self.dies_after is not None and count >= self.dies_after:
                    self.die()

    def die(self) -> None:
        for call in self.calls:
            call.break_off(self.error)
        for channel in self.channels:
            channel.break_off(self.error)


class Replicas:
    """A ``Pool`` that takes its replicas in turn, unless one is preferred."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = list(replicas)
        self.asked = 0
        self.readings: list[Stream[tuple[str, int | None]]] = []

    def generate(
        self, preferred: str, channel: int, key: int, prompt: Sequence[int], sampling: SamplingParams
    ) -> Stream[str]:
        replica = self._next(preferred)
        replica.calls.append(Stream(replica.generate(channel, key, prompt, sampling)))
        return replica.calls[-1]

    def prefill(self, preferred: str, prompt: Sequence[int], *, gently: bool) -> Stream[tuple[str, int | None]]:
        self.readings.append(Stream(self._next(preferred).prefill(prompt, gently)))
        return self.readings[-1]

    def gains(self, replica: str, channel: int) -> Stream[list[Gain]]:
        (named,) = [one for one in self.replicas if one.name == replica]
        named.channels.append(Stream(named.gains(channel)))
        return named.channels[-1]

    def _next(self, preferred: str) -> Replica:
        named = [replica for replica in self.replicas if replica.name == preferred]
        self.asked += 1
        return named[0] if named else self.replicas[(self.asked - 1) % len(self.replicas)]
