"""The framed form of the chat socket: the Responses API's WebSocket mode, bound to one conversation.

A new turn interrupts the answer that is being given, unless the client wants it to wait. An answer whose client is cut
off goes on for a while, and the client that joins the conversation again is told the rest of it.
"""

from __future__ import annotations

import time
import uuid

from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.records import ConversationRecord
from causerie.chat.service import ChatService
from causerie.chat.stores import refusals
from causerie.errors import ResponseNotFound
from causerie.types import OnDisconnect
from causerie.web.delivery import Resumed
from causerie.web.requests import header, owner_of
from causerie.web.response_session import Terms
from causerie.web.response_socket import ResponseSockets
from causerie.web.streams import wanted_on_disconnect
from causerie.wire.fields import query_pairs
from causerie.wire.framed_chat import FramedQuery, greeting, parse_framed
from causerie.wire.responses_events import ResponseEvents

FRAMED = "causerie.chat.v1"
"""The subprotocol by which a client of the chat socket asks for frames."""
GRACE = 30.0
"""Seconds for which an answer goes on whose client is gone, if the client says nothing else."""


async def check_conversation(archive: Archive, owner: str, id_: str) -> None:
    """Raises ConversationNotFound."""
    if await archive.store.conversation(owner, id_) is None:
        raise refusals.no_conversation(id_)


class FramedChat:
    def __init__(self, service: ChatService, archive: Archive, sockets: ResponseSockets) -> None:
        self._service = service
        self._archive = archive
        self._sockets = sockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The socket is not accepted yet, and its origin is a good one."""
        owner, query = owner_of(scope), parse_framed(query_pairs(scope["query_string"]))
        asked = header(scope, b"x-on-disconnect") is not None
        on_disconnect = wanted_on_disconnect(scope, None) if asked else OnDisconnect(GRACE)
        self._sockets.check_open()
        resumed, conversation = None, query.conversation
        if conversation is None:
            conversation = await self._new_conversation(owner)
        else:
            await check_conversation(self._archive, owner, conversation)
            resumed = await self._resumed(owner, conversation, query)
        await self._sockets.open(
            Terms(on_disconnect, conversation, query.interrupting),
            FRAMED,
            scope,
            receive,
            send,
            greeting=greeting(conversation, query.interrupting),
            resumed=resumed,
        )

    async def _new_conversation(self, owner: str) -> str:
        record = ConversationRecord(f"conv_{uuid.uuid4().hex}", owner, time.time())
        await self._archive.keep(lambda: self._archive.store.create_conversation(record, ()))
        return record.id

    async def _resumed(self, owner: str, conversation: str, query: FramedQuery) -> Resumed | None:
        """The response that is asked for, or else the one that is being generated."""
        id_ = query.response or self._archive.running(owner, conversation)
        if id_ is None:
            return None
        try:
            stream = await self._archive.find(owner, id_)
        except ResponseNotFound:
            stream = None
        if stream is None or stream.record.conversation != conversation:
            raise ResponseNotFound(f"The conversation has no response {id_[:64]!r}.", param="response")
        events, position = ResponseEvents(stream.record, ended=stream.ended_at, logprobs=self._service.text), 0
        if query.starting_after is not None:
            position = events.resume([event for _, event in stream.history], query.starting_after)
        return Resumed(stream, events, position)
