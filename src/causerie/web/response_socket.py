"""WebSocket ``/v1/responses``: lets clients in, and knows the open sockets."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.service import ChatService
from causerie.errors import ShuttingDown
from causerie.web.delivery import Resumed
from causerie.web.errors import ForeignOrigin
from causerie.web.requests import same_origin
from causerie.web.response_session import ResponseSession, Terms
from causerie.web.streams import wanted_on_disconnect
from causerie.wire.fields import QueryFields, query_pairs

SUBPROTOCOL = "causerie.responses"
"""Spoken with those who offer any: a browser that offers its key so hangs up unless one of them is taken."""


def check_opening(scope: Scope) -> None:
    """Refuse a page of another origin. Raises ForeignOrigin."""
    if not same_origin(scope):
        raise ForeignOrigin("This page's origin may not open a socket here.", param="Origin")


class ResponseSockets:
    """Opens sessions of the Responses API's WebSocket mode."""

    def __init__(self, service: ChatService, archive: Archive) -> None:
        self._service = service
        self._archive = archive
        self._sessions: set[ResponseSession] = set()
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        check_opening(scope)
        QueryFields(query_pairs(scope["query_string"])).finish()
        protocol = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None
        await self.open(Terms(wanted_on_disconnect(scope, None)), protocol, scope, receive, send)

    def check_open(self) -> None:
        """Raises ShuttingDown."""
        if self._draining or not self._service.ready:
            raise ShuttingDown("The server is not ready, or is shutting down.", retry_after=5)

    async def open(
        self,
        terms: Terms,
        protocol: str | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        greeting: str | None = None,
        resumed: Resumed | None = None,
    ) -> None:
        """Accept the socket and serve it to its end. Raises ShuttingDown before that."""
        self.check_open()
        session = ResponseSession(self._service, self._archive, terms, scope, receive, send)
        self._sessions.add(session)
        try:
            await send({"type": "websocket.accept", "subprotocol": protocol})
            await session.run(greeting, resumed)
        finally:
            self._sessions.discard(session)

    async def drain(self) -> None:
        """Open no more sessions; close the idle ones now, the others after the answers that they are giving."""
        self._draining = True
        await asyncio.gather(*(session.drain() for session in list(self._sessions)))
