"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.graced import GracedStream
from causerie.chat.log import EventReader
from causerie.chat.service import ChatService
from causerie.errors import ModelNotFound
from causerie.types import Event, Finished, PrefillProgress, Queued, Started, TextDelta
from causerie.web.errors import error_body
from causerie.web.requests import id_header, owner_of, read_body
from causerie.web.streams import (
    Encoder,
    StreamedAnswer,
    check_place,
    error_of,
    last_event,
    last_place,
    read_to_end,
    wanted_on_disconnect,
)
from causerie.wire import sse
from causerie.wire.completions import CompletionCall
from causerie.wire.disconnect import Place, parse_again
from causerie.wire.fields import refuse_query, shown
from causerie.wire.openai import (
    Chunks,
    Heading,
    Kind,
    NumberedChunks,
    Whole,
    model_list,
    model_object,
    progress_comment,
)
from causerie.wire.sampling import Limits

PARSE_INLINE = 64 * 1024
"""Bodies of fewer bytes are parsed on the loop; larger ones would hold up everybody's tokens."""

EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def limits_of(service: ChatService) -> Limits:
    """What requests to this service are measured against."""
    return Limits(
        model=service.model_name,
        default_max_tokens=service.default_max_tokens,
        max_choices=min(service.settings.max_batch_size, service.info.max_sequences),
        vocab_size=service.text.vocab_size,
        context_window=service.info.context_window,
        max_logprobs=service.info.top_logprobs,
    )


class Completions:
    """One of the two completion routes; ``parse`` reads its bodies."""

    def __init__(
        self,
        service: ChatService,
        archive: Archive,
        kind: Kind,
        parse: Callable[[bytes, Limits], CompletionCall],
    ) -> None:
        self._service = service
        self._archive = archive
        self._kind = kind
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request_id = self._service, scope["state"]["request_id"]
        body, limits = await read_body(scope, receive, service.settings), limits_of(service)
        refuse_query(scope["query_string"])
        call = (
            self._parse(body, limits)
            if len(body) < PARSE_INLINE
            else await asyncio.to_thread(self._parse, body, limits)
        )
        on_disconnect = wanted_on_disconnect(scope, call.on_disconnect)
        again = last_event(scope)
        if again is not None:
            await self._resume(*again, call.include_usage, scope, receive, send)
            return
        request = replace(call.request(request_id), owner=owner_of(scope), on_disconnect=on_disconnect)
        log = await self._archive.graced.create(request)
        reader = log.reader()
        heading = self._heading(log.id, log.created, request.n, logprobs=request.sampling.logprobs is not None)
        if not call.stream:
            await self._answer_whole(reader, heading, scope, receive, send)
        elif log.outlives_readers:
            chunks = NumberedChunks(heading, include_usage=call.include_usage)
            await self._stream(reader, NumberedStream(chunks), request_id, scope, receive, send)
        else:
            encoder = EventStream(Chunks(heading, include_usage=call.include_usage))
            await self._stream(reader, encoder, request_id, scope, receive, send)

    async def read_again(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``GET …/{id}``: what is stored or outlives its readers, from ``starting_after`` or ``Last-Event-ID`` on."""
        query = parse_again(scope["query_string"])
        id_ = scope["path_params"]["id"]
        again = last_place(scope, id_)
        if query.stream or again is not None:
            await self._resume(id_, again or query.place, query.include_usage, scope, receive, send)
            return
        stream = await self._archive.find_any(owner_of(scope), id_)
        await self._answer_whole(stream.reader(0), self._heading_of(stream), scope, receive, send)

    async def _resume(
        self, id_: str, place: Place, include_usage: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        stream = await self._archive.find_any(owner_of(scope), id_)
        check_place(place, stream.history, scope)
        chunks = NumberedChunks(self._heading_of(stream), include_usage=include_usage, place=place)
        encoder = NumberedStream(chunks)
        for number, event in stream.history[: place.number]:
            encoder.encode(number, event)  # Offsets of log-probabilities go on from here.
        await self._stream(stream.reader(place.number), encoder, id_, scope, receive, send)

    def _heading_of(self, stream: GracedStream) -> Heading:
        return self._heading(stream.id, stream.created, stream.n, logprobs=stream.logprobs)

    def _heading(self, id_: str, created: int, n: int, *, logprobs: bool) -> Heading:
        return Heading(
            kind=self._kind,
            request_id=id_,
            created=created,
            model=self._service.model_name,
            n=n,
            logprobs=self._service.text if logprobs else None,
        )

    async def _stream(
        self, reader: EventReader, encoder: Encoder, id_: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = [*EVENT_STREAM_HEADERS, (b"x-request-id", id_.encode())]
        settings = self._service.settings
        await StreamedAnswer(reader, encoder, headers, settings, heartbeat=sse.HEARTBEAT)(scope, receive, send)

    async def _answer_whole(
        self, reader: EventReader, heading: Heading, scope: Scope, receive: Receive, send: Send
    ) -> None:
        whole = Whole(heading)
        body = whole.finished(await read_to_end(reader, receive, whole.delta))
        headers = {"x-request-id": heading.request_id}
        await Response(body, headers=headers, media_type="application/json")(scope, receive, send)


class EventStream:
    """Chunks as the body of an event stream, where a failure is an event of its own."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks

    def encode(self, number: int, event: Event) -> bytes:
        if type(event) is TextDelta:
            return self._chunks.delta(event)
        if (error := error_of(event)) is not None:
            return self._chunks.failed(error_body(error))
        if isinstance(event, Finished):
            return self._chunks.finished(event)
        return progress_comment(event) if isinstance(event, Queued | PrefillProgress) else b""


class NumberedEvents(Protocol):
    """A wire format whose events have the numbers by which a stream can be picked up again."""

    def started(self, number: int) -> bytes: ...
    def delta(self, number: int, event: TextDelta) -> bytes: ...
    def finished(self, number: int, event: Finished) -> bytes: ...
    def failed(self, number: int, error: bytes) -> bytes: ...


class NumberedStream:
    """Such events as the body of an event stream."""

    def __init__(self, events: NumberedEvents) -> None:
        self._events = events

    def encode(self, number: int, event: Event) -> bytes:
        if type(event) is TextDelta:
            return self._events.delta(number, event)
        if (error := error_of(event)) is not None:
            return self._events.failed(number, error_body(error))
        if isinstance(event, Finished):
            return self._events.finished(number, event)
        if isinstance(event, Started):
            return self._events.started(number)
        return progress_comment(event) if isinstance(event, Queued | PrefillProgress) else b""


class Models:
    """The list of one model, or that model by its name."""

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        model = model_object(service.model_name, self._created, service.info.context_window)
        name = scope["path_params"].get("name")
        if name not in (None, service.model_name, "default"):
            raise ModelNotFound(f"The model {shown(name)} is not served here.", param="model")
        body = model_list([model]) if name is None else orjson.dumps(model)
        await Response(body, headers=id_header(scope), media_type="application/json")(scope, receive, send)
