"""A TCP proxy that cuts connections where the test says."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class CuttingProxy:
    """``cuts`` has, for each connection in turn, after how many bytes from the server it is reset; then none is.

    ``cut`` counts those that were. ``target`` may be changed; while it is None, every new connection is reset.
    """

    def __init__(self, target: str, cuts: Iterable[int]) -> None:
        self.target: str | None = target
        self.url = ""
        self.cut = 0
        self._cuts = iter(cuts)
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._open.add(writer)
        try:
            if self.target is not None:
                parts = urlsplit(self.target)
                answers, upstream = await asyncio.open_connection(parts.hostname, parts.port)
                ends.add(upstream)
                asking = asyncio.create_task(_copy(reader, upstream))
                await self._answer(answers, writer, next(self._cuts, None))
                asking.cancel()
        except ConnectionError:
            pass
        finally:
            self._open.discard(writer)
            for each in ends:
                _reset(each)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
        while data := await reader.read(65536):
            if left is not None and len(data) >= left:
                writer.write(data[:left])
                await writer.drain()
                self.cut += 1
                return
            left = None if left is None else left - len(data)
            writer.write(data)
            await writer.drain()

    def reset_all(self) -> None:
        """Cut what is open."""
        for writer in self._open:
            _reset(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def cutting(target: str, cuts: Iterable[int] = ()) -> AsyncGenerator[CuttingProxy, None]:
    proxy = CuttingProxy(target, cuts)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.reset_all()
