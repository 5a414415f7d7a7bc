"""``POST /`` and ``PUT /``: a prompt in, the answer out as plain text, as it comes; and reading an answer again.

A body whose length is not known beforehand is one that is still being written, perhaps: it is read ahead as it
arrives, and the answer begins when it ends.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.log import EventReader
from causerie.chat.service import ChatService
from causerie.errors import InvalidRequest
from causerie.types import Event, TextDelta
from causerie.web.openai import EVENT_STREAM_HEADERS, NumberedStream, limits_of
from causerie.web.requests import Body, header, owner_of, send_json
from causerie.web.streams import StreamedAnswer, check_place, error_of, last_event, last_place, wanted_on_disconnect
from causerie.wire import sse
from causerie.wire.disconnect import START, Place, parse_place_query
from causerie.wire.fields import refuse_query
from causerie.wire.textbot import StreamedText, TextCall, TextEvents, parse_streamed, parse_textbot

TEXT_HEADERS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class Textbot:
    def __init__(self, service: ChatService, archive: Archive) -> None:
        self._service = service
        self._archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request_id = self._service, scope["state"]["request_id"]
        call = await self._read(scope, Body(scope, receive, service.settings))
        on_disconnect = wanted_on_disconnect(scope, call.on_disconnect)
        again = last_event(scope)
        if again is not None:
            await self._read_again(*again, scope, receive, send)
            return
        request = replace(call.request(request_id), owner=owner_of(scope), on_disconnect=on_disconnect)
        log = await self._archive.graced.create(request)
        await self._send(log.reader(), request_id, scope, receive, send)

    async def read_again(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is stored or outlives its readers, of any route, as text: whole, or from a place on as events."""
        place = parse_place_query(scope["query_string"])
        id_ = scope["path_params"]["id"]
        await self._read_again(id_, last_place(scope, id_) or place, scope, receive, send)

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stop a stream that is stored or outlives its readers; one that has ended stays as it is."""
        refuse_query(scope["query_string"])
        id_ = scope["path_params"]["id"]
        running = await self._archive.cancel_any(owner_of(scope), id_)
        await send_json({"id": id_, "object": "stream", "cancelled": running}, scope, receive, send)

    async def _read_again(self, id_: str, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        stream = await self._archive.find_any(owner_of(scope), id_)
        if stream.n > 1:
            raise InvalidRequest(f"The stream has {stream.n} choices; text has place for one. Read it as completions.")
        check_place(place, stream.history, scope)
        # Without numbers a client could not say where to go on.
        await self._send(stream.reader(place.number), id_, scope, receive, send, events=place != START)

    async def _send(
        self, reader: EventReader, id_: str, scope: Scope, receive: Receive, send: Send, *, events: bool = False
    ) -> None:
        settings = self._service.settings
        if events or b"text/event-stream" in (header(scope, b"accept") or b""):
            headers = [*EVENT_STREAM_HEADERS, (b"x-request-id", id_.encode())]
            answer = StreamedAnswer(reader, NumberedStream(TextEvents(id_)), headers, settings, heartbeat=sse.HEARTBEAT)
        else:
            headers = [*TEXT_HEADERS, (b"x-request-id", id_.encode())]
            answer = StreamedAnswer(reader, PlainText(), headers, settings, heartbeat=None)
        await answer(scope, receive, send)

    async def _read(self, scope: Scope, body: Body) -> TextCall:
        query, limits = scope["query_string"], limits_of(self._service)
        content_type = (header(scope, b"content-type") or b"").decode("latin-1")
        if header(scope, b"content-length") is not None:
            return parse_textbot(query, content_type, await body.read(), limits)
        first = await body.next_piece()
        if body.ended:
            return parse_textbot(query, content_type, first, limits)
        call, text = parse_streamed(query, content_type, limits), StreamedText()
        most, owner = self._service.settings.max_body_bytes, owner_of(scope)
        with closing(self._service.typing(call.prompt, owner=owner, limit=most)) as typing:
            typing.append(text.feed(first))
            async for piece in body:
                typing.append(text.feed(piece, last=body.ended))
            return replace(call, prompt=await typing.commit())


class PlainText:
    """The text and nothing else: its one way to say that it failed is to break off."""

    def encode(self, number: int, event: Event) -> bytes | None:
        if type(event) is TextDelta:
            return "".join(part.text for part in event.parts).encode("utf-8")
        return b"" if error_of(event) is None else None
