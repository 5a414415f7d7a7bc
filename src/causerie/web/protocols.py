"""uvicorn's two protocols with what it leaves open: a hold on the connection, and caps on what a peer piles up.

Each connection that is over is gone within ``LINGER`` seconds, whether or not its client takes what was sent.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

from causerie.errors import InvalidRequest, RequestTooLarge
from causerie.web.errors import error_body
from causerie.web.streams import CONNECTION

MAX_HEADER_BYTES = 64 * 1024
"""Of a request's line and headers together."""
MAX_FRAGMENTS = 4096
"""Of one WebSocket message."""
PARSED_AT_ONCE = 16 * 1024
"""Bytes from one WebSocket between which others get their turn: a few thousand of the smallest frames."""
MAX_UNPARSED = 1024 * 1024
"""Bytes from one WebSocket that may wait to be parsed."""
LINGER = 30.0
"""Seconds for a client to take the rest of what was sent once its connection is to close."""

_TOO_LARGE = error_body(RequestTooLarge(f"The request line and headers are larger than {MAX_HEADER_BYTES} bytes."))
_NOT_HTTP = error_body(InvalidRequest("This is not valid HTTP/1.1."))
_REFUSAL = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with capped headers, one request at a time; the app gets the connection as an ASGI extension.

    What a client sends before its answer has ended is read and dropped, and the connection closes with that answer:
    held back, it would hide the client's leaving. (RFC 9112, 9.3.2: who pipelines has to be ready for that.)
    """

    _in_headers = True
    _held = 0
    _too_large = False
    _deaf = False
    _end: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        # The parser keeps to itself what is unfinished, in headers, trailers and chunk lines, however long it gets.
        self._held += len(data)
        super().data_received(data)
        if self._held > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {CONNECTION: self.transport}

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # And not in trailers, which nobody here reads.
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._held = 0
        if self._answering:
            self._ignore_the_rest()
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEADER_BYTES:
            self._too_large = True
            raise ValueError("headers too large")
        self._in_headers = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._held = 0
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._held = 0
        self._in_headers = True
        if not self._deaf:
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return not self._deaf and super()._should_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request; the parser gave up, so the connection ends."""
        if self._answering and not self.cycle.more_body:
            self._ignore_the_rest()
            return
        if not (self._answering and self.cycle.response_started):
            status, body = (
                (b"431 Request Header Fields Too Large", _TOO_LARGE)
                if self._too_large
                else (b"400 Bad Request", _NOT_HTTP)
            )
            self.transport.write(_REFUSAL % (status, len(body), body))
        self.transport.close()
        self._end_soon()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _ignore_the_rest(self) -> None:
        self._deaf = True
        self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_soon()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def _end_soon(self) -> None:
        if self._end is None:
            self._end = self.loop.call_later(LINGER, self.transport.abort)


class SocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket with capped fragments and unread pongs; the app gets the connection as an ASGI extension."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._unparsed = bytearray()

    def data_received(self, data: bytes) -> None:
        if not self._unparsed and len(data) <= PARSED_AT_ONCE:
            super().data_received(data)
            return
        waiting = bool(self._unparsed)
        self._unparsed += data
        if len(self._unparsed) > MAX_UNPARSED:
            self.transport.abort()
        elif not waiting:
            self._parse_some()

    def _parse_some(self) -> None:
        if self.transport.is_closing():
            self._unparsed.clear()
            return
        piece = bytes(self._unparsed[:PARSED_AT_ONCE])
        super().data_received(piece)
        del self._unparsed[:PARSED_AT_ONCE]
        if self._unparsed:
            self.transport.pause_reading()
            self.loop.call_soon(self._parse_some)
        elif not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> Any:
        message = await super().receive()
        if self._unparsed:  # uvicorn has resumed reading, but what was read already comes first.
            self.transport.pause_reading()
        return message

    async def send(self, message: Any) -> None:
        if self.close_sent and self.initial_response is None:
            # It was closed here, for a bad frame or a pong that did not come; the app may not have heard of it yet.
            raise ClientDisconnected
        await super().send(message)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions = cast(dict[str, Any], self.scope["extensions"])
            extensions[CONNECTION] = self.transport

    def handle_cont(self, event: Frame) -> None:
        # Their bytes are capped already, but an empty fragment costs memory too.
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"more than {MAX_FRAGMENTS} fragments in one message")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            # A peer that pings and takes no pong would have them pile up here.
            self.conn.data_to_send()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "invalid UTF-8")
                return
        super().send_receive_event_to_app()

    async def run_asgi(self) -> None:
        app = self.app

        async def call(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)
            # A handshake that was refused is complete too; uvicorn would log an error.
            self.handshake_complete = self.handshake_complete or self.initial_response is not None

        self.app = call
        await super().run_asgi()
        if not self.disconnected:
            self._end = self.loop.call_later(LINGER, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()
