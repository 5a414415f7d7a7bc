"""For whoever runs the server: ``/health``, ``/ready``, ``/metrics``, and a page that says what is here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from causerie.chat.service import ChatService
from causerie.errors import InvalidRequest
from causerie.web.requests import header, id_header
from causerie.wire.fields import QueryFields, query_pairs

DECODE_TIMEOUT = 10.0
"""Seconds in which the engine has to decode one token to be healthy."""

_WELCOME = """causerie: {model} is listening.

Text in, text out (?prompt=… or a text body):
    curl -N -d 'Hello' http://{host}/
A conversation, where each answer ends with <<Response Finished>>:
    ws://{host}/
For OpenAI clients, the base URL ({key}):
    http://{host}/v1
For whoever runs it:
    /health  /ready  /metrics
"""


class Health:
    """200 if the engine decodes a token now, else 503."""

    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        healthy = await self._service.check_decode(DECODE_TIMEOUT)
        await _status(scope, healthy, "ok" if healthy else "no token decoded")(scope, receive, send)


class Ready:
    """200 while new requests are taken, else 503."""

    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = self._service.ready
        await _status(scope, ready, "ready" if ready else "not ready")(scope, receive, send)


class MetricsPage:
    """``render`` gives the text exposition."""

    def __init__(self, render: Callable[[], Awaitable[bytes]]) -> None:
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, content_type = await self._render(), CONTENT_TYPE_LATEST
        await Response(body, headers={"content-type": content_type, **id_header(scope)})(scope, receive, send)


class Welcome:
    """What is here, for whoever looks; a prompt is refused, since no answer may come of a GET."""

    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if QueryFields(query_pairs(scope["query_string"])).all("prompt"):
            raise InvalidRequest("A prompt is sent with POST or PUT, not with GET.", param="prompt")
        host = (header(scope, b"host") or b"localhost").decode("ascii")
        key = "with your API key" if self._service.settings.has_keys else "any key will do"
        text = _WELCOME.format(model=self._service.model_name, host=host, key=key)
        await PlainTextResponse(text, headers=id_header(scope))(scope, receive, send)


def _status(scope: Scope, good: bool, word: str) -> Response:
    body = orjson.dumps({"status": word})
    return Response(body, 200 if good else 503, id_header(scope), "application/json")
