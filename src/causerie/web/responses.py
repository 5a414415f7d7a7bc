"""``/v1/responses``: create, read again, cancel, delete, and what a response was asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive, Stream
from causerie.chat.log import EventReader, Numbered
from causerie.chat.records import ResponseRecord, outcome_of
from causerie.chat.service import ChatService
from causerie.errors import CauserieError, ItemNotFound, ResponseNotFound
from causerie.types import Event, Failed, Finished
from causerie.web.delivery import acknowledge
from causerie.web.openai import EVENT_STREAM_HEADERS, PARSE_INLINE, limits_of
from causerie.web.requests import ClientGone, header, id_header, owner_of, read_body, send_json
from causerie.web.streams import StreamedAnswer, leave_with_client, refuse_last_event, wanted_on_disconnect
from causerie.wire import sse
from causerie.wire.acknowledgement import parse_acknowledgement
from causerie.wire.disconnect import check_in_background
from causerie.wire.fields import query_pairs, refuse_members, refuse_query
from causerie.wire.idempotency import check_same, response_id
from causerie.wire.items import item_list
from causerie.wire.queries import ListQuery, parse_list_query, parse_response_query
from causerie.wire.responses_events import ResponseEvents, as_sse, error_event
from causerie.wire.responses_object import deleted_object, response_object
from causerie.wire.responses_request import ResponseCall, parse_response


class Responses:
    """The routes under ``/v1/responses``; each method is an ASGI application."""

    def __init__(self, service: ChatService, archive: Archive) -> None:
        self._service = service
        self._archive = archive

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._service.settings)
        refuse_query(scope["query_string"])
        refuse_last_event(scope)
        call = await self._parse(body)
        if call.on_disconnect is None and header(scope, b"x-on-disconnect") is not None:
            wanted = wanted_on_disconnect(scope, None)
            if call.background:
                check_in_background(wanted, "X-On-Disconnect")
            call = replace(call, on_disconnect=wanted)
        stream = await self._begin(owner_of(scope), call, header(scope, b"idempotency-key"))
        if call.stream:
            logprobs = None if call.sampling.logprobs is None else self._service.text
            events = ResponseEvents(stream.record, ended=stream.ended_at, logprobs=logprobs)
            await self._stream(stream.reader(0), events, scope, receive, send)
        elif call.background:
            await send_json(response_object(stream.record, stream.status), scope, receive, send)
        else:
            await send_json(response_object(await _read_to_end(stream, receive)), scope, receive, send)

    async def read(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``GET /v1/responses/{id}``: as it is now, or as a stream from the beginning or from a number on."""
        query = parse_response_query(query_pairs(scope["query_string"]))
        refuse_last_event(scope)
        stream = await self._archive.find(owner_of(scope), scope["path_params"]["id"])
        if not query.stream:
            await send_json(response_object(stream.record, stream.status), scope, receive, send)
            return
        events = ResponseEvents(stream.record, ended=stream.ended_at, logprobs=self._service.text)
        position = 0
        if query.starting_after is not None:
            position = events.resume([event for _, event in stream.history], query.starting_after)
        await self._stream(stream.reader(position), events, scope, receive, send)

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._service.settings)
        refuse_query(scope["query_string"])
        refuse_members(body)
        record = await self._archive.cancel(owner_of(scope), scope["path_params"]["id"])
        await send_json(response_object(record), scope, receive, send)

    async def acknowledge(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._service.settings)
        refuse_query(scope["query_string"])
        shown = parse_acknowledgement(body)
        id_ = scope["path_params"]["id"]
        stream = await self._archive.find(owner_of(scope), id_)
        text_end = await acknowledge(shown, stream.answer, len(stream.history))
        await send_json({"id": id_, "object": "response.ack", "text_end": text_end}, scope, receive, send)

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope["query_string"])
        id_ = scope["path_params"]["id"]
        await self._archive.delete(owner_of(scope), id_)
        await send_json(deleted_object(id_), scope, receive, send)

    async def input_items(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_list_query(query_pairs(scope["query_string"]))
        record = (await self._archive.find(owner_of(scope), scope["path_params"]["id"])).record
        await send_json(_page(record, query), scope, receive, send)

    async def _begin(self, owner: str, call: ResponseCall, key: bytes | None) -> Stream:
        """A new response, or the one that this idempotency key stands for."""
        if key is None:
            return (await self._archive.create(owner, call)).stream
        id_ = response_id(owner, key, call)
        try:
            found = await self._archive.find(owner, id_)
        except ResponseNotFound:
            return (await self._archive.create(owner, call, id_=id_)).stream
        check_same(call, found.record)
        return found

    async def _parse(self, body: bytes) -> ResponseCall:
        limits = limits_of(self._service)
        if len(body) < PARSE_INLINE:
            return parse_response(body, limits)
        return await asyncio.to_thread(parse_response, body, limits)

    async def _stream(
        self, reader: EventReader, events: ResponseEvents, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = [*EVENT_STREAM_HEADERS, (b"x-request-id", id_header(scope)["x-request-id"].encode())]
        settings = self._service.settings
        body = _Stream(events)
        answer = StreamedAnswer(reader, body, headers, settings, heartbeat=sse.HEARTBEAT, broken=body.broken)
        await answer(scope, receive, send)


class _Stream:
    """A response's events as the body of an event stream."""

    def __init__(self, events: ResponseEvents) -> None:
        self._events = events
        self._opened = False

    def encode(self, number: int, event: Event) -> bytes:
        if self._opened:
            return self._events.sse(Numbered(number, event))
        return self._open() + self._events.sse(Numbered(number, event))

    def broken(self, error: CauserieError) -> bytes:
        return self._open() + as_sse([error_event(error, self._events.number)])

    def _open(self) -> bytes:
        self._opened = True
        return as_sse(self._events.opening())


async def _read_to_end(stream: Stream, receive: Receive) -> ResponseRecord:
    """The record with its outcome. Raises the response's error, or ClientGone."""
    reader, events = stream.reader(0), list[Event]()
    gone = asyncio.create_task(leave_with_client(receive, reader))
    try:
        async for _, event in reader:
            events.append(event)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                break
        if reader.at_end:
            return replace(stream.record, outcome=outcome_of(events, stream.ended_at()))
        raise ClientGone
    finally:
        gone.cancel()
        await reader.aclose()


def _page(record: ResponseRecord, query: ListQuery) -> dict[str, object]:
    items = list(reversed(record.input)) if query.newest_first else list(record.input)
    if query.after is not None:
        ids = [item.id for item in items]
        if query.after not in ids:
            raise ItemNotFound(f"The response was asked no item {query.after[:64]!r}.", param="after")
        items = items[ids.index(query.after) + 1 :]
    return item_list(items[: query.limit], has_more=len(items) > query.limit)
