"""The ASGI application: routes, and around them the one place where an error becomes an answer."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

from causerie.chat.service import ChatService
from causerie.errors import CauserieError
from causerie.web.chatbot import Chatbot
from causerie.web.errors import error_response, routing_error
from causerie.web.openai import Completions, Models
from causerie.web.ops import Health, MetricsPage, Ready, Welcome
from causerie.web.requests import ClientGone, check_host, discard_body, request_id
from causerie.web.streams import ResponseCut
from causerie.web.textbot import Textbot
from causerie.wire.completions import parse_chat, parse_completion

logger = logging.getLogger("causerie.web")

_LINGER = 2.0
"""Seconds that a client may go on sending a body that was refused."""


class App:
    """Every surface of one service. ``drain`` closes what would otherwise never end."""

    def __init__(self, service: ChatService, metrics: Callable[[], Awaitable[bytes]]) -> None:
        self._chatbot = Chatbot(service)
        models = Models(service)
        self._router = Router(
            [
                Route("/", Textbot(service), methods=["POST", "PUT"]),
                Route("/", Welcome(service), methods=["GET"]),
                WebSocketRoute("/", self._chatbot),
                Route("/v1/chat/completions", Completions(service, "chat", parse_chat), methods=["POST"]),
                Route("/v1/completions", Completions(service, "text", parse_completion), methods=["POST"]),
                Route("/v1/models", models, methods=["GET"]),
                Route("/v1/models/{name:path}", models, methods=["GET"]),
                Route("/health", Health(service), methods=["GET"]),
                Route("/ready", Ready(service), methods=["GET"]),
                Route("/metrics", MetricsPage(metrics), methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    async def drain(self) -> None:
        """Close idle chat sockets now, and the others after the answer that they are giving."""
        await self._chatbot.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
            return
        id_ = request_id(scope)
        scope["app"] = self
        scope["state"] = {**scope.get("state", {}), "request_id": id_}
        try:
            check_host(scope)
            await self._router(scope, receive, send)
        except ClientGone:
            return
        except ResponseCut:
            raise
        except HTTPException as error:
            described = routing_error(error, scope.get("method", "WebSocket"), scope["path"])
            await error_response(described, id_)(scope, receive, send)
        except CauserieError as error:
            if scope["state"].get("body_open"):
                await _refuse_body(error, id_, receive, send)
            else:
                await error_response(error, id_)(scope, receive, send)
        except Exception:
            logger.exception("request %s failed", id_)
            unexpected = CauserieError("The server failed to answer this request. It is not your request's fault.")
            await error_response(unexpected, id_)(scope, receive, send)


def create_app(service: ChatService, metrics: Callable[[], Awaitable[bytes]] | None = None) -> App:
    """The ASGI application on ``service``, which its owner starts and stops.

    ``metrics`` gives what ``/metrics`` answers where that is more than the service's own.
    """

    async def own() -> bytes:
        return service.metrics.render()

    return App(service, metrics or own)


async def _refuse_body(error: CauserieError, id_: str, receive: Receive, send: Send) -> None:
    """Answer, then read and drop for a moment what still comes, then close: a reset would swallow the answer."""
    response = error_response(error, id_, close=True)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    await discard_body(receive, _LINGER)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
