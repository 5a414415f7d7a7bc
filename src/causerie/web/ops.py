"""For whoever runs the server: ``/health``, ``/ready``, ``/metrics``, and a page that says what is here."""

from __future__ import annotations

import orjson
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from causerie.chat.service import ChatService

DECODE_TIMEOUT = 10.0
"""Seconds in which the engine has to decode one token to be healthy."""

_WELCOME = """causerie: {model} is listening.

  curl -N 'http://{host}/?prompt=Hello'        text in, text out (or a text body)
  ws://{host}/                                 a conversation; each answer ends with <<Response Finished>>
  http://{host}/v1                             base URL for OpenAI clients; no key is needed
  /health /ready /metrics                      for whoever runs it
"""


class Health:
    """200 if the engine decodes a token now, else 503."""

    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        healthy = await self._service.check_decode(DECODE_TIMEOUT)
        await _status(healthy, "ok" if healthy else "no token decoded")(scope, receive, send)


class Ready:
    """200 while new requests are taken, else 503."""

    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = self._service.ready
        await _status(ready, "ready" if ready else "not ready")(scope, receive, send)


class MetricsPage:
    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, content_type = self._service.metrics.render()
        await Response(body, headers={"content-type": content_type})(scope, receive, send)


class Welcome:
    def __init__(self, service: ChatService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "localhost")
        text = _WELCOME.format(model=self._service.model_name, host=host)
        await PlainTextResponse(text)(scope, receive, send)


def _status(good: bool, word: str) -> Response:
    return Response(orjson.dumps({"status": word}), 200 if good else 503, media_type="application/json")
