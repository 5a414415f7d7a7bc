"""WebSocket ``/``: a call with the model. Text frames are turns, text frames are the answer, then the sentinel.

The conversation lives as long as the socket, or is a stored one that the client joins. A failure closes it with a
code from ``causerie.web.errors`` and a reason, and without a sentinel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.log import Reader
from causerie.chat.service import ChatService
from causerie.errors import CauserieError, RequestTooLarge, ShuttingDown
from causerie.types import Failed, Finished, Started, TextDelta
from causerie.web.errors import meaning
from causerie.web.framed_chat import FRAMED, FramedChat, check_conversation
from causerie.web.openai import limits_of
from causerie.web.pulse import Pulse
from causerie.web.requests import owner_of
from causerie.web.response_socket import check_opening
from causerie.web.streams import CONNECTION, cancelled_error
from causerie.web.talks import KeptTalk, PassingTalk, Talk
from causerie.wire.chat_socket import ChatSocket, close_reason
from causerie.wire.textbot import parse_socket

logger = logging.getLogger("causerie.web")

PROTOCOL = "causerie.chat"
"""The subprotocol that this socket speaks, for those who offer any."""
UNSUPPORTED_DATA = 1003
INTERNAL_ERROR = 1011


class Chatbot:
    """Opens sessions, and knows the open ones."""

    def __init__(self, service: ChatService, archive: Archive, framed: FramedChat) -> None:
        self._service = service
        self._archive = archive
        self._framed = framed
        self._sessions: set[Session] = set()
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        check_opening(scope)
        if FRAMED in scope["subprotocols"]:
            await self._framed(scope, receive, send)
            return
        if self._draining or not self._service.ready:
            raise ShuttingDown("The server is not ready, or is shutting down.", retry_after=5)
        talk = await self._talk(scope)
        # A browser that offers protocols, to send its key as one, hangs up unless one of them is taken.
        protocol = PROTOCOL if PROTOCOL in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": protocol})
        session = Session(self._service, talk, scope, receive, send)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)

    async def _talk(self, scope: Scope) -> Talk:
        call = parse_socket(scope["query_string"], limits_of(self._service))
        if call.conversation is None:
            return PassingTalk(self._service, call)
        owner = owner_of(scope)
        await check_conversation(self._archive, owner, call.conversation)
        return KeptTalk(self._service, self._archive, owner, call.conversation, call)

    async def drain(self) -> None:
        """Open no more sessions; close the idle ones now, the others after the answer that they are giving."""
        self._draining = True
        await asyncio.gather(*(session.drain() for session in list(self._sessions)))


class Session:
    """One socket. The caller's task receives; a second one answers, a turn at a time."""

    def __init__(self, service: ChatService, talk: Talk, scope: Scope, receive: Receive, send: Send) -> None:
        self._service = service
        self._talk = talk
        self._connection = scope.get("extensions", {}).get(CONNECTION)
        self._receive = receive
        self._send = send
        self._socket = ChatSocket()
        self._turns = asyncio.Event()
        self._closed = False
        self._draining = False
        self._reader: Reader | None = None

    async def run(self) -> None:
        """Until the client leaves or the socket is closed; leaves nothing running."""
        task = asyncio.current_task()
        assert task is not None
        self._pulse = Pulse(self._service.settings.send_timeout, self._give_up)
        answering = asyncio.create_task(self._answer_turns())
        try:
            while (message := await self._receive())["type"] != "websocket.disconnect":
                await self._take(message.get("text"))
        finally:
            self._closed = True
            self._pulse.stop()
            answering.cancel()
            await asyncio.wait({answering})

    async def drain(self) -> None:
        """Close once no turn is being answered and none waits."""
        self._draining = True
        if self._socket.idle:
            await self._close_with(ShuttingDown("The server is shutting down."))

    async def _take(self, text: str | None) -> None:
        if self._closed:
            return
        if text is None:
            await self._close(UNSUPPORTED_DATA, "This socket takes text frames only.")
            return
        limit = self._service.settings.max_frame_bytes
        try:
            # Our own server does not let it come so far; others, as Ray's, have other limits.
            if len(text.encode()) > limit:
                raise RequestTooLarge(f"A message has at most {limit} bytes here.")
            self._socket.receive(text)
        except CauserieError as error:
            await self._close_with(error)
        self._turns.set()

    async def _answer_turns(self) -> None:
        try:
            while not self._closed:
                turn = self._socket.next_turn()
                if turn is not None:
                    await self._answer(turn)
                elif self._draining:
                    await self._close_with(ShuttingDown("The server is shutting down."))
                else:
                    self._turns.clear()
                    await self._turns.wait()
        except CauserieError as error:
            await self._close_with(error)
        except Exception:
            logger.exception("a turn on a chat socket failed")
            await self._close(INTERNAL_ERROR, "The server failed to answer this turn.")

    async def _answer(self, turn: str) -> None:
        log = await self._talk.begin(turn)
        said: list[str] = []
        async with log.reader() as reader:
            self._reader = reader
            async for _, event in reader:
                if type(event) is TextDelta:
                    for part in event.parts:
                        said.append(part.text)
                        for frame in self._socket.frames(part.text):
                            await self._send_text(frame)
                elif type(event) is Started:
                    self._talk.started(event)
                elif type(event) is Failed:
                    raise event.error
                elif type(event) is Finished:
                    error = cancelled_error(event)
                    if error is not None:
                        raise error
            if not reader.at_end:
                return  # Closed meanwhile.
        self._talk.said(turn, said)
        await self._send_text(self._socket.end_turn())

    async def _send_text(self, text: str) -> None:
        if not self._closed:
            self._pulse.begin()
            # OSError is ASGI's word for a client that has left; receiving says so too.
            with contextlib.suppress(OSError):
                await self._send({"type": "websocket.send", "text": text})
            self._pulse.end()

    async def _close_with(self, error: CauserieError) -> None:
        await self._close(meaning(error).close_code, error.message)

    async def _close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._turns.set()
            if self._reader is not None:
                await self._reader.aclose()
            with contextlib.suppress(OSError):
                await self._send({"type": "websocket.close", "code": code, "reason": close_reason(reason)})

    def _give_up(self) -> None:
        """The client takes nothing: free the engine, unless others read, and do not wait for the client."""
        self._closed = True
        if self._reader is not None:
            self._reader.give_up()
        if self._connection is not None:
            self._connection.abort()
