"""A raw HTTP/1.1 client: one request over one connection, read as it arrives."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

_open: list[RawResponse] = []


def close_all() -> None:
    """Leave every connection that a test opened and forgot."""
    while _open:
        _open.pop().writer.close()


@dataclass
class RawResponse:
    """A connection on which a request was sent. ``head`` first, then ``chunk`` until it returns b''."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    async def head(self) -> int:
        """Read the status line and the headers; returns the status."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return self.status

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" for the last. Raises IncompleteReadError where it is cut off."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def body(self) -> bytes:
        """The whole rest, whichever way it is framed."""
        if "content-length" in self.headers:
            return await self.reader.readexactly(int(self.headers["content-length"]))
        pieces = []
        while piece := await self.chunk():
            pieces.append(piece)
        return b"".join(pieces)

    async def json(self) -> Any:
        return orjson.loads(await self.body())

    async def close(self) -> None:
        """Leave in the ordinary way."""
        self.writer.close()

    def reset(self) -> None:
        """Leave with an RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()


async def connect(url: str, *, receive_buffer: int | None = None) -> RawResponse:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    # A small limit: what the test has not asked for stays in the kernel's buffers.
    response = RawResponse(*await asyncio.open_connection(sock=sock, limit=2**16))
    _open.append(response)
    return response


def request_bytes(
    url: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    given = {"Host": urlsplit(url).netloc, "Content-Length": str(len(body))} | dict(headers or {})
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode() + body


async def send(
    url: str,
    method: str,
    path: str,
    body: bytes | dict[str, Any] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    receive_buffer: int | None = None,
) -> RawResponse:
    """Connect and send a request; nothing is read yet."""
    response = await connect(url, receive_buffer=receive_buffer)
    encoded = body if isinstance(body, bytes) else orjson.dumps(body)
    response.writer.write(request_bytes(url, method, path, encoded, headers))
    await response.writer.drain()
    return response


def chat_body(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | fields
