"""Blocking HTTP and WebSocket clients on bare sockets, which can do all that a well-bred client never does."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson

SENTINEL = "<<Response Finished>>"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Truncated(Exception):
    """The connection ended before what was being read did."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails if the body is not exactly one, with text for people and nothing of the server's."""
        body = self.json()
        assert set(body) == {"error"}, body
        error: dict[str, Any] = body["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str) and error["message"], error
        for inside in ("Traceback", "site-packages", "/src/", ".py", os.getcwd()):  # noqa: PTH109
            assert inside not in error["message"], error
        return error


class Connection:
    """One TCP connection. Whatever is read is read strictly; nothing takes longer than ``timeout`` seconds."""

    def __init__(self, address: tuple[str, int], *, timeout: float = 10.0, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"{address[0]}:{address[1]}"
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        return self.send(request_bytes(self._host, method, path, body, headers))

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers, by lower-case names."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in headers.items()}

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" is its proper end."""
        size = int(self._until(b"\r\n"), 16)
        data = self.exactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    def answer(self) -> Answer:
        """Head and body, however the body is framed. Raises Truncated if it has no proper end."""
        status, headers = self.head()
        if "content-length" in headers:
            return Answer(status, headers, self.exactly(int(headers["content-length"])))
        assert headers["transfer-encoding"] == "chunked"
        pieces = []
        while piece := self.chunk():
            pieces.append(piece)
        return Answer(status, headers, b"".join(pieces))

    def rest(self) -> bytes:
        """Everything up to the end of the connection, whichever way it ends."""
        with contextlib.suppress(ConnectionError):
            while self._more():
                pass
        data, self._buffer = bytes(self._buffer), bytearray()
        return data

    def ended(self) -> bool:
        """Whether nothing more comes and the server has closed; waits for that."""
        return not self.rest()

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self._more():
                raise Truncated(bytes(self._buffer))
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def close(self) -> None:
        self.socket.close()

    def half_close(self) -> None:
        """Send a FIN and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send an RST, as a client that crashed does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            if not self._more():
                raise Truncated(bytes(self._buffer))
        data = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return data

    def _more(self) -> bool:
        data = self.socket.recv(65536)
        self._buffer += data
        return bool(data)


class ChatSocket(Connection):
    """A WebSocket client that writes its own frames."""

    path = "/"

    def open(self, headers: Mapping[str, str] | None = None) -> Self:
        """Ask for the socket; returns once it is there."""
        self.ask(headers)
        status, accepted = self.head()
        assert status == 101, status
        assert "sec-websocket-extensions" not in accepted
        return self

    def ask(self, headers: Mapping[str, str] | None = None) -> Self:
        wanted = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        return self.request("GET", self.path, None, wanted | dict(headers or {}))

    def text(self, text: str) -> Self:
        return self.send(frame(TEXT, text.encode()))

    def frame(self) -> tuple[int, bytes]:
        """The next frame, pings answered: opcode and payload. A server's frames are whole and unmasked."""
        while True:
            first, second = self.exactly(2)
            assert first & 0xF0 == 0x80 and second < 0x80
            size = second
            if size >= 126:
                size = int.from_bytes(self.exactly(2 if size == 126 else 8))
            payload = self.exactly(size)
            if first & 0x0F != PING:
                return first & 0x0F, payload
            self.send(frame(PONG, payload))

    def turn(self, text: str) -> str:
        """Say ``text``; returns the whole answer."""
        return "".join(self.text(text).frames())

    def frames(self) -> list[str]:
        """The frames of one answer, without the sentinel that ends it."""
        frames: list[str] = []
        while True:
            opcode, payload = self.frame()
            assert opcode == TEXT, (opcode, payload)
            if payload.decode() == SENTINEL:
                return frames
            frames.append(payload.decode())

    def close_code(self) -> int:
        """Reads past text until the server closes; the code of its one close frame, after which nothing comes."""
        opcode, payload = self.frame()
        while opcode in (TEXT, PONG):
            assert payload.decode() != SENTINEL
            opcode, payload = self.frame()
        assert opcode == CLOSE
        payload[2:].decode()
        assert len(payload) <= 125
        with contextlib.suppress(ConnectionError):
            self.send(frame(CLOSE, payload[:2]))
        assert self.ended()
        return int.from_bytes(payload[:2])


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A client's frame."""
    size = len(payload)
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 65536:
        head += struct.pack("!BH", mask_bit | 126, size)
    else:
        head += struct.pack("!BQ", mask_bit | 127, size)
    # A mask of zeros is a mask, and leaves the payload as it is.
    return head + (bytes(4) if masked else b"") + payload


def request_bytes(
    host: str,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    encoded = orjson.dumps(body) if isinstance(body, dict) else body
    sent = {"Host": host}
    if encoded is not None:
        sent |= {"Content-Type": "application/json" if isinstance(body, dict) else "text/plain"}
        sent |= {"Content-Length": str(len(encoded))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (sent | dict(headers or {})).items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (encoded or b"")


def events(body: bytes) -> list[str]:
    """The data of each server-sent event, read as the standard says; fails on any line that is not data or comment."""
    text = body.decode("utf-8")
    assert not text.startswith("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[str] = []
    data: list[str] = []
    for line in lines:
        if not line and data:
            found.append("\n".join(data))
            data = []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        else:
            assert not line or line.startswith(":"), line
    assert not data, "the last event is not ended by a blank line"
    return found


def parts_of_event(block: bytes) -> tuple[str | None, str | None, bytes] | None:
    """Name, id and data of one server-sent event without its blank line; None for one that has only comments."""
    name = id_ = data = None
    for line in block.split(b"\n"):
        field, _, value = line.partition(b": ")
        if field == b"event":
            name = value.decode()
        elif field == b"id":
            id_ = value.decode()
        elif field == b"data":
            assert data is None
            data = value
        else:
            assert line.startswith(b":"), line
    return None if data is None else (name, id_, data)


def chunks(body: bytes) -> list[dict[str, Any]]:
    """The JSON of each event of a stream that ended well: one ``[DONE]``, and it is the last."""
    found = events(body)
    assert found[-1] == "[DONE]"
    decoded = [orjson.loads(data) for data in found[:-1]]
    assert all(isinstance(chunk, dict) and "error" not in chunk for chunk in decoded)
    return decoded


def content(body: bytes, index: int = 0) -> str:
    """The joined text of one choice of a stream that ended well."""
    choices = [choice for chunk in chunks(body) for choice in chunk["choices"] if choice["index"] == index]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]
    assert reasons and reasons == [choices[-1]["finish_reason"]], reasons
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)
