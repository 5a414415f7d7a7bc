"""``POST /``: a prompt in, the answer out as plain text, as it comes."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from causerie.chat.service import ChatService
from causerie.errors import CauserieError
from causerie.types import Finished, TextDelta
from causerie.web.openai import limits_of
from causerie.web.requests import header, read_body
from causerie.web.streams import StreamedAnswer
from causerie.wire.textbot import parse_textbot

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
        body = await read_body(scope, receive, service.settings)
        content_type = (header(scope, b"content-type") or b"").decode("latin-1")
        call = parse_textbot(scope["query_string"], content_type, body, limits_of(service))
        log = await service.create(call.request(request_id))
        headers = [*TEXT_HEADERS, (b"x-request-id", request_id.encode())]
        await StreamedAnswer(log, PlainText(), headers, service.settings, heartbeat=None)(scope, receive, send)


class PlainText:
    """The text and nothing else: its one way to say that it failed is to break off."""

    def delta(self, event: TextDelta) -> bytes:
        return "".join(part.text for part in event.parts).encode("utf-8")

    def finished(self, event: Finished) -> bytes:
        return b""

    def failed(self, error: CauserieError) -> None:
        return None
