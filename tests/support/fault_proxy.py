"""A TCP proxy that spoils connections: each is cut at a chosen byte, in a chosen way, by a plan."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

_PIECE = 65536


class Way(StrEnum):
    RESET = "reset"
    """An RST to both sides."""
    STALL = "stall"
    """Nothing more passes, and nobody is told."""
    END = "end to the client"
    """A FIN to the client; the server is told when the client has gone."""
    LEAVE = "end to the server"
    """A FIN to the server; the client gets what the server still sends."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one connection: after so many bytes of the request or of the answer it is cut."""

    way: Way | None
    """None: it is left whole."""
    after: int = 0
    in_request: bool = False
    split: bool = False
    """Every byte is a packet of its own, in both directions."""


def faults(seed: str, most: int, mean: float = 1500.0) -> Callable[[], Fault]:
    """A plan of ``most`` random cuts, ``mean`` bytes into the answer; then connections stay whole, some split."""
    chance = random.Random(seed)
    left = most

    def plan() -> Fault:
        nonlocal left
        split = chance.random() < 0.25
        if left <= 0:
            return Fault(None, split=split)
        left -= 1
        way = chance.choice(list(Way))
        if chance.random() < 0.1:
            return Fault(way, chance.randrange(400), in_request=True, split=split)
        return Fault(way, int(chance.expovariate(1 / mean)), split=split)

    return plan


class FaultProxy:
    """Stands before the server at ``target``; ``plan`` is asked once for each connection."""

    def __init__(self, target: tuple[str, int], plan: Callable[[], Fault]) -> None:
        self.cuts: Counter[Way] = Counter()
        """The cuts that were made: a connection may be over before its byte comes."""
        self.split = 0
        """Connections whose every byte was a packet."""
        self._target = target
        self._plan = plan
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        client = _Side(reader, writer)
        try:
            server = _Side(*await asyncio.open_connection(*self._target))
            try:
                await self._pass(client, server, self._plan())
            finally:
                server.writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # One of the two is gone, or the test is over.
        finally:
            client.writer.transport.abort()
            self._connections.discard(task)

    async def _pass(self, client: _Side, server: _Side, fault: Fault) -> None:
        self.split += fault.split
        cut_request = fault.after if fault.way and fault.in_request else None
        cut_answer = fault.after if fault.way and not fault.in_request else None
        request = asyncio.create_task(_copy(client, server, cut_request, fault.split))
        answer = asyncio.create_task(_copy(server, client, cut_answer, fault.split))
        try:
            while True:
                done, _ = await asyncio.wait({request, answer}, return_when=asyncio.FIRST_COMPLETED)
                if any(task.result() for task in done):
                    break
                if answer in done or request in done:
                    # The server has ended its answer, or the client has left.
                    return
            assert fault.way is not None
            self.cuts[fault.way] += 1
            await _cut(client, server, fault.way, request, answer)
        finally:
            for task in (request, answer):
                task.cancel()
            await asyncio.gather(request, answer, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Side:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def left(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(_PIECE):
                pass


async def _copy(source: _Side, sink: _Side, limit: int | None, split: bool) -> bool:
    """Whether the place of the cut was reached; else the source has ended."""
    passed = 0
    while limit is None or passed < limit:
        data = await source.reader.read(_PIECE if limit is None else min(_PIECE, limit - passed))
        if not data:
            return False
        passed += len(data)
        for piece in (data[at : at + 1] for at in range(len(data))) if split else (data,):
            sink.writer.write(piece)
            await sink.writer.drain()
    return True


async def _cut(client: _Side, server: _Side, way: Way, request: asyncio.Task[bool], answer: asyncio.Task[bool]) -> None:
    if way is Way.RESET:
        client.reset()
        server.reset()
    elif way is Way.LEAVE:
        server.writer.write_eof()
        if answer.done():
            answer = asyncio.create_task(_copy(server, client, None, split=False))
        async with asyncio.timeout(30):
            await answer
    else:
        answer.cancel()
        if way is Way.END:
            client.writer.write_eof()
        # Bytes of a request that was not cut still pass to a server that hears of nothing.
        if request.done():
            await client.left()
        else:
            await request
