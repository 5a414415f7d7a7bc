"""Thousands of open chat sockets on one process: memory for each, and what they cost a busy one beside them.

The sockets are opened by hand-written handshakes, so that the client needs little itself, and say nothing. The busy one
asks a short question again and again, before they are opened and while they are; its first token is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.report import finish, machine_line, table
from benchmarks.server import Server
from causerie.wire.chat_socket import SENTINEL

_HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
AT_ONCE = 64
"""Handshakes under way."""


class Idle(asyncio.Protocol):
    """A socket that was opened and says nothing."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.opened = asyncio.get_running_loop().create_future()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_HANDSHAKE.format(host=self._host).encode())

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self._head += data
            if b"\r\n\r\n" in self._head:
                self.opened.set_result(self._head.startswith(b"HTTP/1.1 101"))


async def open_idle(url: str, count: int) -> list[asyncio.Transport]:
    """``count`` sockets, all accepted."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    gate = asyncio.Semaphore(AT_ONCE)
    loop = asyncio.get_running_loop()

    async def one() -> asyncio.Transport:
        async with gate:
            transport, idle = await loop.create_connection(lambda: Idle(parts.netloc), host, port)
            if not await idle.opened:
                raise SystemExit("the server refused a socket")
            return transport

    return await asyncio.gather(*(one() for _ in range(count)))


async def first_tokens(socket: ClientConnection, rounds: int) -> list[float]:
    """Seconds to the first frame of each answer."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        await socket.send("Hi")
        await socket.recv()
        found.append(time.perf_counter() - begun)
        while await socket.recv() != SENTINEL:
            pass
    return found


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def measure(count: int, rounds: int, arguments: list[str]) -> dict[str, float]:
    with Server.causerie(*arguments) as server:
        async with connect(server.target.url.replace("http", "ws") + "/?max_tokens=8") as busy:
            await first_tokens(busy, 5)
            alone = await first_tokens(busy, rounds)
            before = resident(server.pid)
            transports = await open_idle(server.target.url, count)
            during = resident(server.pid)
            beside = await first_tokens(busy, rounds)
            for transport in transports:
                transport.abort()
    return {
        "sockets": count,
        "kib_per_socket": (during - before) / count / 1024,
        "first_token_ms_alone": statistics.median(alone) * 1000,
        "first_token_ms_beside": statistics.median(beside) * 1000,
        "p95_ms_alone": statistics.quantiles(alone, n=20)[-1] * 1000,
        "p95_ms_beside": statistics.quantiles(beside, n=20)[-1] * 1000,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sockets", description=__doc__)
    parser.add_argument("--sockets", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--engine", default="scripted", choices=["scripted", "openvino"])
    options = parser.parse_args(argv)
    found = asyncio.run(measure(options.sockets, options.rounds, ["--engine", options.engine]))
    print(machine_line() + "\n")
    print(table(["what", "value"], [[name, f"{value:,.1f}"] for name, value in found.items()]))
    finish("sockets", {"engine": options.engine, **found})


if __name__ == "__main__":
    main()
