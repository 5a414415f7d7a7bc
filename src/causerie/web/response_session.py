"""WebSocket ``/v1/responses``, and the framed form of the chat socket, which is the same bound to one conversation.

One task receives; each response that is being answered has one that sends its events. A client that leaves is seen
by the first; what becomes of its responses, their ``on_disconnect`` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec

from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.log import EventReader
from causerie.chat.records import Status, outcome_of
from causerie.chat.service import ChatService
from causerie.errors import CauserieError, RequestTooLarge, ShuttingDown
from causerie.types import OnDisconnect
from causerie.web.delivery import Delivery, Resumed
from causerie.web.errors import meaning
from causerie.web.input_buffer import InputBuffer
from causerie.web.openai import PARSE_INLINE, limits_of
from causerie.web.pulse import Pulse
from causerie.web.requests import owner_of
from causerie.web.streams import CONNECTION
from causerie.wire import socket_lane
from causerie.wire.chat_socket import close_reason
from causerie.wire.response_socket import ResponseSocket
from causerie.wire.responses_events import ResponseEvents
from causerie.wire.socket_events import Append, Clear, Commit, Edit, Reading, Truncate
from causerie.wire.socket_lane import Acknowledge, Action, Begin, Open, Stop

P = ParamSpec("P")

logger = logging.getLogger("causerie.web")

UNSUPPORTED_DATA = 1003
INTERNAL_ERROR = 1011

_UNFORESEEN = "The server failed to answer this. It is not your request's fault."


@dataclass(frozen=True, slots=True)
class Terms:
    """What a socket is for."""

    on_disconnect: OnDisconnect
    """Of a response that does not say."""
    conversation: str | None = None
    """What all of it belongs to, if it is bound to one."""
    interrupting: bool = False


class ResponseSession:
    """One accepted socket. ``run`` it in the connection's own task."""

    def __init__(
        self, service: ChatService, archive: Archive, terms: Terms, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._service = service
        self._archive = archive
        self._terms = terms
        self._owner = owner_of(scope)
        self._connection = scope.get("extensions", {}).get(CONNECTION)
        self._receive = receive
        self._send = send
        self._reading = Reading(limits_of(service), terms.conversation)
        self._socket = ResponseSocket(_describe, self._reading.opening, interrupting=terms.interrupting)
        self._sending = asyncio.Lock()
        self._stepping = asyncio.Lock()
        """Around what the machine is told and what it then wants done, so that the buffer is as the machine thinks."""
        self._tasks: set[asyncio.Task[object]] = set()
        self._readers: set[EventReader] = set()
        self._deliveries: dict[str | None, Delivery] = {}
        self._input = InputBuffer(service, archive, self._owner, self._on_prefilled)
        self._prefilled: tuple[int, int] | None = None
        self._closed = False
        self._draining = False

    async def run(self, greeting: str | None = None, resumed: Resumed | None = None) -> None:
        """Until the client leaves or the socket is closed; leaves nothing running that should not go on.

        ``greeting`` is sent first. ``resumed`` is a response of the conversation to go on with.
        """
        self._pulse = Pulse(self._service.settings.send_timeout, self._give_up)
        try:
            if greeting is not None:
                await self.send(greeting)
            if resumed is not None:
                self._socket.begin_again()
                self._spawn(self._answering(self._go_on(resumed)))
            while (message := await self._receive())["type"] != "websocket.disconnect":
                await self._taking(message.get("text"))
                await asyncio.sleep(0)  # Nothing of that need wait: a flood would leave nobody else a turn.
        finally:
            self._closed = True
            self._pulse.stop()
            self._input.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def send(self, text: str) -> None:
        async with self._sending:
            await self._write(text)

    async def _write(self, text: str) -> None:
        if not self._closed:
            self._pulse.begin()
            # OSError is ASGI's word for a client that has left; receiving says so too.
            with contextlib.suppress(OSError):
                await self._send({"type": "websocket.send", "text": text})
            self._pulse.end()

    async def drain(self) -> None:
        """Close once nothing is being answered and nothing waits."""
        self._draining = True
        await self._close_if_done()

    async def _taking(self, text: str | None) -> None:
        try:
            await self._take(text)
        except Exception:
            logger.exception("a frame could not be taken in")
            await self._close(INTERNAL_ERROR, _UNFORESEEN)

    async def _take(self, text: str | None) -> None:
        if self._closed:
            return
        if text is None:
            await self._close(UNSUPPORTED_DATA, "This socket takes text frames only.")
            return
        limit = self._service.settings.max_frame_bytes
        # Our own server does not let it come so far; others, as Ray's, have other limits.
        if len(text) > limit or len(text.encode()) > limit:
            error = RequestTooLarge(f"A message has at most {limit} bytes here.")
            await self._close(meaning(error).close_code, error.message)
        elif len(text) < PARSE_INLINE:
            await self._step(self._socket.receive, self._reading.parse(text))
        else:
            await self._step(self._socket.receive, await asyncio.to_thread(self._reading.parse, text))

    async def _step(self, tell: Callable[P, Sequence[Action]], *args: P.args, **kwargs: P.kwargs) -> None:
        async with self._stepping:
            await self._do(tell(*args, **kwargs))

    async def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case socket_lane.Send(text):
                    await self.send(text)
                case Begin():
                    self._spawn(self._answering(self._answer(action)))
                case Stop(lane, cause):
                    self._deliveries[lane].stop(cause)
                case Acknowledge():
                    await self._acknowledge(action)
                case Open():
                    await self._open(action)
                case _:
                    await self._edit(action)

    async def _acknowledge(self, action: Acknowledge) -> None:
        try:
            await self._deliveries[action.lane].acknowledge(action.shown)
        except CauserieError as error:
            await self.send(self._socket.error(error, action.lane).text)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answering(self, answer: Coroutine[Any, Any, None]) -> None:
        try:
            await answer
            await self._close_if_done()
        except Exception:
            logger.exception("a response failed on its socket")
            await self._close(INTERNAL_ERROR, _UNFORESEEN)

    async def _answer(self, begin: Begin) -> None:
        lane = begin.lane
        call = replace(begin.call, on_disconnect=begin.call.on_disconnect or self._terms.on_disconnect)
        try:
            live = await self._archive.create(self._owner, call, history=begin.history)
        except CauserieError as error:
            await self._step(self._socket.refused, lane, error)
        except Exception:
            logger.exception("a response could not be created on a socket")
            await self._step(self._socket.refused, lane, CauserieError(_UNFORESEEN))
        else:
            record, log, history = live
            names = None if call.sampling.logprobs is None else self._service.text
            events = ResponseEvents(record, ended=lambda: log.ended_at, logprobs=names)
            end = await self._send_events(lane, Delivery(record, log, log.cancel), events, log.reader())
            outcome = outcome_of(log.events, log.ended_at)
            output = None if outcome is None else outcome.item(record.output_id)
            said = [*history, *record.input, *([] if output is None else [output])]
            await self._step(self._socket.ended, lane, end, said)

    async def _go_on(self, resumed: Resumed) -> None:
        record = resumed.stream.record
        delivery = Delivery(
            record,
            resumed.stream.answer,
            lambda _: self._spawn(self._stop_stored(record.id)),
            sent=resumed.position,
        )
        events = resumed.events
        try:
            end = await self._send_events(None, delivery, events, resumed.stream.reader(resumed.position))
        except CauserieError as error:  # The store failed, or what was read from it was deleted.
            await self._step(self._socket.broken, None, error, events.number)
        else:
            await self._step(self._socket.ended, None, end, ())

    async def _stop_stored(self, id_: str) -> None:
        with contextlib.suppress(CauserieError):  # It is gone, or the store is; then its events say so.
            await self._archive.cancel(self._owner, id_)

    async def _send_events(
        self, lane: str | None, delivery: Delivery, events: ResponseEvents, reader: EventReader
    ) -> Status:
        """Send a response's events to its end, and return how it ended."""
        end = Status.CANCELLED
        self._readers.add(reader)
        try:
            self._deliveries[lane] = delivery
            await self._do(self._socket.created(lane, delivery.record.id))
            for event in events.opening():
                await self.send(self._socket.event(lane, event).text)
            async for numbered in reader:
                delivery.sent = numbered.number
                for event in events.encode(numbered):
                    await self.send(self._socket.event(lane, event).text)
                outcome = outcome_of((numbered.event,), 0.0)
                end = end if outcome is None else outcome.status
        finally:
            self._deliveries.pop(lane, None)
            self._readers.discard(reader)
            await reader.aclose()
        return end

    async def _edit(self, action: Edit) -> None:
        """What changes the input buffer; what cannot be is answered with an error."""
        try:
            match action:
                case Commit():
                    text, history = await self._input.commit()
                    self._prefilled = None
                    await self._do(self._socket.committed(text, history))
                case Clear():
                    self._input.close()
                    self._prefilled = None
                case Append(text, _):
                    self._input.append(text)
                case Truncate(length):
                    self._input.truncate(length)
        except CauserieError as error:
            await self._do(self._socket.unedited(action, error))

    async def _open(self, action: Open) -> None:
        self._prefilled = None
        try:
            await self._input.open(action.call, action.history)
        except CauserieError as error:
            await self._do(self._socket.unopened(error))

    def _on_prefilled(self, tokens: int, cached: int) -> None:
        telling = self._prefilled is not None
        self._prefilled = tokens, cached
        if not telling:
            self._spawn(self._tell_prefilled())

    async def _tell_prefilled(self) -> None:
        async with self._sending:
            # What was being sent is out, and only the latest progress is worth telling, if its message is there still.
            if self._prefilled is not None:
                told, self._prefilled = self._prefilled, None
                await self._write(self._socket.prefilled(*told).text)

    async def _close_if_done(self) -> None:
        if self._draining and self._socket.idle:
            error = ShuttingDown("The server is shutting down.")
            await self._close(meaning(error).close_code, error.message)

    async def _close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            current = asyncio.current_task()
            for task in self._tasks:
                if task is not current:
                    task.cancel()
            with contextlib.suppress(OSError):
                await self._send({"type": "websocket.close", "code": code, "reason": close_reason(reason)})

    def _give_up(self) -> None:
        """The client takes nothing: free the engine, and do not wait for the client."""
        self._closed = True
        for reader in list(self._readers):
            reader.give_up()
        if self._connection is not None:
            self._connection.abort()


def _describe(error: CauserieError) -> tuple[int, str]:
    found = meaning(error)
    return found.status, found.type
