"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from causerie.chat.service import ChatService
from causerie.errors import CauserieError, ModelNotFound
from causerie.types import Finished, TextDelta
from causerie.web.errors import error_body
from causerie.web.requests import id_header, read_body
from causerie.web.streams import StreamedAnswer, read_to_end
from causerie.wire import sse
from causerie.wire.completions import CompletionCall
from causerie.wire.fields import shown
from causerie.wire.openai import Chunks, Heading, Kind, Whole, model_list, model_object
from causerie.wire.sampling import Limits

_PARSE_INLINE = 64 * 1024
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
    )


class Completions:
    """One of the two completion routes; ``parse`` reads its bodies."""

    def __init__(self, service: ChatService, kind: Kind, parse: Callable[[bytes, Limits], CompletionCall]) -> None:
        self._service = service
        self._kind = kind
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request_id = self._service, scope["state"]["request_id"]
        body, limits = await read_body(scope, receive, service.settings), limits_of(service)
        call = (
            self._parse(body, limits)
            if len(body) < _PARSE_INLINE
            else await asyncio.to_thread(self._parse, body, limits)
        )
        log = await service.create(call.request(request_id))
        heading = Heading(
            kind=self._kind,
            request_id=request_id,
            created=log.created,
            model=service.model_name,
            n=call.n,
            logprobs=None if call.sampling.logprobs is None else service.text,
        )
        if call.stream:
            encoder = _EventStream(Chunks(heading, include_usage=call.include_usage))
            headers = [*EVENT_STREAM_HEADERS, (b"x-request-id", request_id.encode())]
            answer = StreamedAnswer(log, encoder, headers, service.settings, heartbeat=sse.HEARTBEAT)
            await answer(scope, receive, send)
        else:
            whole = Whole(heading)
            finished = await read_to_end(log, receive, whole.delta)
            await Response(whole.finished(finished), headers=id_header(scope), media_type="application/json")(
                scope, receive, send
            )


class _EventStream:
    """Chunks as the body of an event stream, where a failure is an event of its own."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self.delta: Callable[[TextDelta], bytes] = chunks.delta

    def finished(self, event: Finished) -> bytes:
        return self._chunks.finished(event)

    def failed(self, error: CauserieError) -> bytes:
        return self._chunks.failed(error_body(error))


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
