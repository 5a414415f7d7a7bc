"""From a response's log to an HTTP body: as a stream that never outlives its client, or read to its end.

Per event there is one ``send`` and no task; what can go wrong is watched from beside: one task waits for the
client's leaving, one timer for a client that takes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.types import Receive, Scope, Send

from causerie.chat.log import EventReader, Numbered
from causerie.config import Settings
from causerie.errors import Cancelled, CauserieError, InvalidRequest, UnsupportedParameter
from causerie.types import Event, Failed, Finished, FinishReason, OnDisconnect, TextDelta
from causerie.web.pulse import Pulse
from causerie.web.requests import ClientGone, header
from causerie.wire.disconnect import Place, parse_event_id, parse_on_disconnect

logger = logging.getLogger("causerie.web")

CONNECTION = "causerie.connection"
"""ASGI extension: an object with ``close()`` (send what was written, then close) and ``abort()`` (close now)."""

_CLOSING = 5.0
"""Seconds for what was written to reach the client of an answer that is cut off."""


class ResponseCut(Exception):
    """The answer ends without its proper end, so that it cannot pass for a whole one."""


class Encoder(Protocol):
    """One wire format."""

    def encode(self, number: int, event: Event) -> bytes | None:
        """What becomes of an event in the body, perhaps nothing; None where the format can only break off."""


def cancelled_error(event: Finished) -> Cancelled | None:
    """The error that a cancelled response is to whoever still reads it."""
    if not {FinishReason.CANCELLED, FinishReason.STEERED}.isdisjoint(event.reasons):
        return Cancelled("The response was cancelled before it was finished.")
    return None


def error_of(event: Event) -> CauserieError | None:
    """The error that an event is to whoever reads it; None for what is no end, or a good one."""
    if type(event) is Failed:
        return event.error
    return cancelled_error(event) if type(event) is Finished else None


def wanted_on_disconnect(scope: Scope, field: OnDisconnect | None) -> OnDisconnect:
    """What the request's field says, or its ``X-On-Disconnect`` header, or else: cancel."""
    value = header(scope, b"x-on-disconnect")
    if field is not None or value is None:
        return field or OnDisconnect()
    return parse_on_disconnect(value.decode("latin-1"), "X-On-Disconnect")


def last_event(scope: Scope) -> tuple[str, Place] | None:
    """The stream that ``Last-Event-ID`` names, and the place in it. Raises InvalidRequest."""
    value = header(scope, b"last-event-id")
    return None if value is None else parse_event_id(value.decode("latin-1"))


def last_place(scope: Scope, id_: str) -> Place | None:
    """The place that it names in the stream ``id_``. Raises InvalidRequest, also where it names another stream."""
    found = last_event(scope)
    if found is None:
        return None
    named, place = found
    if named != id_:
        raise InvalidRequest("'Last-Event-ID' is of another stream than the path.", param="Last-Event-ID")
    return place


def refuse_last_event(scope: Scope) -> None:
    """For the routes whose events have a ``sequence_number`` and no id. Raises UnsupportedParameter."""
    if header(scope, b"last-event-id") is not None:
        raise UnsupportedParameter(
            "'Last-Event-ID' has no meaning for a response, whose events have no ids. Read on with "
            "GET /v1/responses/ID?stream=true&starting_after=N, where N is the last 'sequence_number' that came.",
            param="Last-Event-ID",
        )


def check_place(place: Place, history: Sequence[Numbered], scope: Scope) -> None:
    """Refuse to go on behind what nobody was sent yet. Raises InvalidRequest."""
    seen = len(history)
    if place.number + bool(place.pieces) > seen:
        param = "starting_after" if header(scope, b"last-event-id") is None else "Last-Event-ID"
        raise InvalidRequest(f"The stream has only {seen} events so far; none is number {place}.", param=param)


class StreamedAnswer:
    """Sends one response as it comes. Call it once; it leaves the log whatever happens.

    ``heartbeat`` is sent after each ``settings.heartbeat`` seconds of silence; with one, the headers go out at
    once. Without, they wait for the first text, so that a failure before it has its own status: it is raised.
    ``broken`` makes the body's end where what is still to come cannot be read, as from a store that failed; without it
    the body is cut off.
    """

    def __init__(
        self,
        reader: EventReader,
        encoder: Encoder,
        headers: list[tuple[bytes, bytes]],
        settings: Settings,
        *,
        heartbeat: bytes | None,
        broken: Callable[[CauserieError], bytes] | None = None,
    ) -> None:
        self._reader = reader
        self._encoder = encoder
        self._headers = headers
        self._settings = settings
        self._heartbeat = heartbeat
        self._broken = broken
        self._started = False
        self._closed = False
        self._stuck = False
        self._beat: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        task = asyncio.current_task()
        assert task is not None
        gone = asyncio.create_task(leave_with_client(receive, self._reader))
        silence = None if self._heartbeat is None else self._settings.heartbeat
        self._pulse = Pulse(self._settings.send_timeout, lambda: self._give_up(task), silence, self._keep_alive)
        try:
            try:
                complete = await self._pump()
            except CauserieError as error:
                if not self._started:
                    raise
                # A store failed, or the response was deleted: how it ends is not known.
                logger.warning("the stream of a stored response breaks off: %s", error)
                complete = self._broken is not None
                if self._broken is not None:
                    await self._write(self._broken(error), False)
            if not complete and not gone.done():
                await self._cut(scope, gone)
        except asyncio.CancelledError:
            if not self._stuck or task.uncancel():
                raise
            await self._cut(scope, gone)
        finally:
            self._closed = True
            self._pulse.stop()
            gone.cancel()
            if self._beat is not None:
                self._beat.cancel()
            await self._reader.aclose()

    async def _pump(self) -> bool:
        """Send until the end; False if the answer has to be cut off or its client has gone."""
        encode = self._encoder.encode
        if self._heartbeat is not None:
            await self._start()
        async for number, event in self._reader:
            if type(event) is TextDelta:
                body = encode(number, event)
                if body:
                    await self._write(body, True)
                continue
            error = error_of(event)
            if error is not None and not self._started:
                raise error
            body = encode(number, event)
            if body is None:
                return False
            if isinstance(event, Finished | Failed):
                await self._write(body, False)
                return True
            if body:
                await self._write(body, True)
        if self._reader.at_end:  # It had everything already.
            await self._write(b"", False)
            return True
        return False

    async def _start(self) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def _write(self, body: bytes, more: bool) -> None:
        if not self._started:
            await self._start()
        if not more:
            self._closed = True
        self._pulse.begin()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._pulse.end()

    def _keep_alive(self) -> None:
        if self._started and not self._closed:
            self._beat = asyncio.create_task(self._send_heartbeat())

    async def _send_heartbeat(self) -> None:
        if not self._closed and self._heartbeat is not None:
            await self._write(self._heartbeat, True)

    def _give_up(self, task: asyncio.Task[None]) -> None:
        self._stuck = True
        self._reader.give_up()
        task.cancel()

    async def _cut(self, scope: Scope, gone: asyncio.Task[None]) -> None:
        await self._reader.aclose()
        await cut_off(scope, gone, abort=self._stuck)


async def cut_off(scope: Scope, gone: asyncio.Task[None], *, abort: bool) -> None:
    """Close the connection so that the body has no proper end. ``gone`` ends when the client is seen to be gone."""
    connection = scope.get("extensions", {}).get(CONNECTION)
    if connection is None:
        raise ResponseCut
    if not abort:
        connection.close()
        await asyncio.wait({gone}, timeout=_CLOSING)
    if not gone.done():
        connection.abort()
        await asyncio.wait({gone}, timeout=_CLOSING)


async def leave_with_client(receive: Receive, reader: EventReader) -> None:
    """Wait until the client is gone, then leave the log, which ends the reader's iteration."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await reader.aclose()


async def read_to_end(reader: EventReader, receive: Receive, delta: Callable[[TextDelta], None]) -> Finished:
    """Feed every delta to ``delta`` and return the end. Raises the response's error, or ClientGone."""
    gone = asyncio.create_task(leave_with_client(receive, reader))
    try:
        async for _, event in reader:
            if isinstance(event, TextDelta):
                delta(event)
            elif (error := error_of(event)) is not None:
                raise error
            elif isinstance(event, Finished):
                return event
        raise ClientGone
    finally:
        gone.cancel()
        await reader.aclose()
