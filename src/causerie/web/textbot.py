"""``POST /`` and ``PUT /``: a prompt in, the answer out as plain text, as it comes.

A body whose length is not known beforehand is one that is still being written, perhaps: it is read ahead as it
arrives, and the answer begins when it ends.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from causerie.chat.service import ChatService
from causerie.errors import CauserieError
from causerie.types import Finished, TextDelta
from causerie.web.openai import limits_of
from causerie.web.requests import Body, header
from causerie.web.streams import StreamedAnswer
from causerie.wire.textbot import StreamedText, TextCall, parse_streamed, parse_textbot

TEXT_HEADERS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class Textbot:
    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request_id = self._service, scope["state"]["request_id"]
        call = await self._read(scope, Body(scope, receive, service.settings))
        log = await service.create(call.request(request_id))
        headers = [*TEXT_HEADERS, (b"x-request-id", request_id.encode())]
        await StreamedAnswer(log, PlainText(), headers, service.settings, heartbeat=None)(scope, receive, send)

    async def _read(self, scope: Scope, body: Body) -> TextCall:
        query, limits = scope["query_string"], limits_of(self._service)
        content_type = (header(scope, b"content-type") or b"").decode("latin-1")
        if header(scope, b"content-length") is not None:
            return parse_textbot(query, content_type, await body.read(), limits)
        first = await body.next_piece()
        if body.ended:
            return parse_textbot(query, content_type, first, limits)
        call, text = parse_streamed(query, content_type, limits), StreamedText()
        with closing(self._service.typing(call.prompt, limit=self._service.settings.max_body_bytes)) as typing:
            typing.append(text.feed(first))
            async for piece in body:
                typing.append(text.feed(piece, last=body.ended))
            return replace(call, prompt=await typing.commit())


class PlainText:
    """The text and nothing else: its one way to say that it failed is to break off."""

    def delta(self, event: TextDelta) -> bytes:
        return "".join(part.text for part in event.parts).encode("utf-8")

    def finished(self, event: Finished) -> bytes:
        return b""

    def failed(self, error: CauserieError) -> None:
        return None
