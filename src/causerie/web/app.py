"""The ASGI application: routes, and around them the one place where an error becomes an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.routing import Match, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.service import ChatService
from causerie.errors import CauserieError, InvalidKey
from causerie.web.access import Access
from causerie.web.chatbot import Chatbot
from causerie.web.conversations import Conversations
from causerie.web.errors import ForeignOrigin, UnknownHost, error_response, method_not_allowed, unknown_route
from causerie.web.framed_chat import FramedChat
from causerie.web.openai import Completions, Models
from causerie.web.ops import Health, MetricsPage, Ready, Welcome
from causerie.web.requests import ClientGone, discard_body, request_id
from causerie.web.response_socket import ResponseSockets
from causerie.web.responses import Responses
from causerie.web.streams import ResponseCut
from causerie.web.textbot import Textbot
from causerie.wire.completions import parse_chat, parse_completion

logger = logging.getLogger("causerie.web")

_LINGER = 2.0
"""Seconds that a client may go on sending a body that was refused."""


class Endpoint:
    """A method as an ASGI application: Starlette would take a bare one for a function of a request."""

    def __init__(self, call: ASGIApp) -> None:
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._call(scope, receive, send)


class App:
    """Every surface of one service. ``drain`` closes what would otherwise never end.

    Each route and socket finds in ``scope["state"]`` its ``request_id``, and its ``owner``: the name of the key that
    was shown, ``ANONYMOUS`` where none is asked for.
    """

    def __init__(
        self, service: ChatService, archive: Archive, metrics: Callable[[], Awaitable[bytes]], access: Access
    ) -> None:
        self._access = access
        self._rejected = service.metrics.rejected
        self._sockets = ResponseSockets(service, archive)
        self._chatbot = Chatbot(service, archive, FramedChat(service, archive, self._sockets))
        models = Models(service)
        textbot = Textbot(service, archive)
        responses = Responses(service, archive)
        talks = Conversations(archive, service.settings)
        chat = Completions(service, archive, "chat", parse_chat)
        text = Completions(service, archive, "text", parse_completion)
        self._router = Router(
            [
                Route("/", textbot, methods=["POST", "PUT"]),
                Route("/", Welcome(service), methods=["GET"]),
                WebSocketRoute("/", self._chatbot),
                Route("/streams/{id:path}", Endpoint(textbot.read_again), methods=["GET"]),
                Route("/streams/{id:path}", Endpoint(textbot.cancel), methods=["DELETE"]),
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/v1/chat/completions/{id:path}", Endpoint(chat.read_again), methods=["GET"]),
                Route("/v1/completions", text, methods=["POST"]),
                Route("/v1/completions/{id:path}", Endpoint(text.read_again), methods=["GET"]),
                Route("/v1/responses", Endpoint(responses.create), methods=["POST"]),
                WebSocketRoute("/v1/responses", self._sockets),
                Route("/v1/responses/{id}", Endpoint(responses.read), methods=["GET"]),
                Route("/v1/responses/{id}", Endpoint(responses.delete), methods=["DELETE"]),
                Route("/v1/responses/{id}/cancel", Endpoint(responses.cancel), methods=["POST"]),
                Route("/v1/responses/{id}/ack", Endpoint(responses.acknowledge), methods=["POST"]),
                Route("/v1/responses/{id}/input_items", Endpoint(responses.input_items), methods=["GET"]),
                Route("/v1/conversations", Endpoint(talks.create), methods=["POST"]),
                Route("/v1/conversations/{id}", Endpoint(talks.read), methods=["GET"]),
                Route("/v1/conversations/{id}", Endpoint(talks.update), methods=["POST"]),
                Route("/v1/conversations/{id}", Endpoint(talks.delete), methods=["DELETE"]),
                Route("/v1/conversations/{id}/items", Endpoint(talks.items), methods=["GET"]),
                Route("/v1/conversations/{id}/items", Endpoint(talks.add_items), methods=["POST"]),
                Route("/v1/conversations/{id}/items/{item}", Endpoint(talks.item), methods=["GET"]),
                Route("/v1/conversations/{id}/items/{item}", Endpoint(talks.delete_item), methods=["DELETE"]),
                Route("/v1/models", models, methods=["GET"]),
                Route("/v1/models/{name:path}", models, methods=["GET"]),
                Route("/health", Health(service), methods=["GET"]),
                Route("/ready", Ready(service), methods=["GET"]),
                Route("/metrics", MetricsPage(metrics), methods=["GET"]),
            ],
            redirect_slashes=False,
            default=_nothing_here,
        )

    async def drain(self) -> None:
        """Close idle sockets now, and the others after the answers that they are giving."""
        await asyncio.gather(self._chatbot.drain(), self._sockets.drain())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
            return
        id_ = request_id(scope)
        scope["app"] = self
        scope["state"] = {**scope.get("state", {}), "request_id": id_}
        try:
            self._admit(scope)
            await self._router(scope, receive, send)
        except ClientGone:
            return
        except ResponseCut:
            raise
        except HTTPException:  # Starlette's one refusal that is left to it: of a method.
            await error_response(method_not_allowed(scope, self._methods(scope)), id_)(scope, receive, send)
        except CauserieError as error:
            if scope["state"].get("body_open") or isinstance(error, InvalidKey):
                await _refuse_body(error, id_, scope, receive, send)
            else:
                await error_response(error, id_)(scope, receive, send)
        except Exception:
            logger.exception("request %s failed", id_)
            unexpected = CauserieError("The server failed to answer this request. It is not your request's fault.")
            await error_response(unexpected, id_)(scope, receive, send)

    def _methods(self, scope: Scope) -> tuple[str, ...]:
        """All that the path is there for: it may have several routes, and Starlette looks at the first."""
        there = [route for route in self._router.routes if route.matches(scope)[0] is not Match.NONE]
        return tuple(sorted({method for route in there if isinstance(route, Route) for method in route.methods or ()}))

    def _admit(self, scope: Scope) -> None:
        """Before anything else of the request is read."""
        try:
            self._access.check_host(scope)
            scope["state"]["owner"] = self._access.owner_of(scope)
            self._access.check_origin(scope)
        except (UnknownHost, InvalidKey, ForeignOrigin) as error:
            self._rejected(error.code)
            raise


def create_app(
    service: ChatService,
    archive: Archive,
    metrics: Callable[[], Awaitable[bytes]] | None = None,
    access: Access | None = None,
) -> App:
    """The ASGI application on ``service`` and its ``archive``, which their owner starts and stops.

    ``metrics`` gives what ``/metrics`` answers where that is more than the service's own; ``access`` is made of
    the service's settings if it is not given. Raises ConfigError for API keys that cannot be read.
    """

    async def own() -> bytes:
        return service.metrics.render()

    return App(service, archive, metrics or own, access or Access(service.settings))


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """For a path without a route; Starlette would refuse a handshake with 403 and without a word."""
    raise unknown_route(scope)


async def _refuse_body(error: CauserieError, id_: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, then read and drop for a moment what still comes, then close: a reset would swallow the answer."""
    if scope["type"] == "websocket":
        await error_response(error, id_)(scope, receive, send)
        return
    response = error_response(error, id_, close=True)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    await discard_body(receive, _LINGER)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
