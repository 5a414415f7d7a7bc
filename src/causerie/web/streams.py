"""From a response's log to an HTTP body: as a stream that never outlives its client, or read to its end.

Per event there is one ``send`` and no task; what can go wrong is watched from beside: one task waits for the
client's leaving, one timer for a client that takes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from starlette.types import Receive, Scope, Send

from causerie.chat.log import Reader, ResponseLog
from causerie.config import Settings
from causerie.errors import Cancelled, CauserieError
from causerie.types import CancelCause, Failed, Finished, FinishReason, TextDelta
from causerie.web.pulse import Pulse
from causerie.web.requests import ClientGone

CONNECTION = "causerie.connection"
"""ASGI extension: an object with ``close()`` (send what was written, then close) and ``abort()`` (close now)."""

_CLOSING = 5.0
"""Seconds for what was written to reach the client of an answer that is cut off."""


class ResponseCut(Exception):
    """The answer ends without its proper end, so that it cannot pass for a whole one."""


class Encoder(Protocol):
    """One wire format. Every method returns bytes of the body, perhaps none."""

    def delta(self, event: TextDelta) -> bytes: ...

    def finished(self, event: Finished) -> bytes:
        """The end of a response that was not cancelled."""

    def failed(self, error: CauserieError) -> bytes | None:
        """The end of one that failed; None where the format has no way to say so but to break off."""


def cancelled_error(event: Finished) -> Cancelled | None:
    """The error that a cancelled response is to whoever still reads it."""
    if FinishReason.CANCELLED in event.reasons:
        return Cancelled("The response was cancelled before it was finished.")
    return None


class StreamedAnswer:
    """Sends one response as it comes. Call it once; it leaves the log whatever happens.

    ``heartbeat`` is sent after each ``settings.heartbeat`` seconds of silence; with one, the headers go out at
    once. Without, they wait for the first text, so that a failure before it has its own status: it is raised.
    """

    def __init__(
        self,
        log: ResponseLog,
        encoder: Encoder,
        headers: list[tuple[bytes, bytes]],
        settings: Settings,
        *,
        heartbeat: bytes | None,
    ) -> None:
        self._log = log
        self._reader = log.reader()
        self._encoder = encoder
        self._headers = headers
        self._settings = settings
        self._heartbeat = heartbeat
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
            complete = await self._pump()
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
        encoder = self._encoder
        if self._heartbeat is not None:
            await self._start()
        async for _, event in self._reader:
            if type(event) is TextDelta:
                body = encoder.delta(event)
                if body:
                    await self._write(body, True)
            elif type(event) is Finished:
                error = cancelled_error(event)
                if error is None:
                    await self._write(encoder.finished(event), False)
                    return True
                return await self._fail(error)
            elif type(event) is Failed:
                return await self._fail(event.error)
        return False

    async def _fail(self, error: CauserieError) -> bool:
        if not self._started:
            raise error
        body = self._encoder.failed(error)
        if body is None:
            return False
        await self._write(body, False)
        return True

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
        self._log.cancel(CancelCause.SLOW_READER)
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


async def leave_with_client(receive: Receive, reader: Reader) -> None:
    """Wait until the client is gone, then leave the log, which ends the reader's iteration."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await reader.aclose()


async def read_to_end(log: ResponseLog, receive: Receive, delta: Callable[[TextDelta], None]) -> Finished:
    """Feed every delta to ``delta`` and return the end. Raises the response's error, or ClientGone."""
    reader = log.reader()
    gone = asyncio.create_task(leave_with_client(receive, reader))
    try:
        async for _, event in reader:
            if isinstance(event, TextDelta):
                delta(event)
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Finished):
                error = cancelled_error(event)
                if error is not None:
                    raise error
                return event
        raise ClientGone
    finally:
        gone.cancel()
        await reader.aclose()
