"""A turn is read by the server while it is being typed: little of it is left to be read when it is sent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from causerie.client.server import Server

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection


class Ahead:
    """Keeps a server's input text buffer equal to what is typed, over a socket of its own.

    It is a help and no more: the turn is sent whole, over HTTP, whatever became of it. So nothing here raises, and
    nothing waits for the network. After a failure it rests until the next turn.
    """

    def __init__(self, server: Server) -> None:
        self.prefilled: tuple[int, int] | None = None
        """Of the turn that is being typed, and what comes before it: tokens that are settled, and read by the model."""
        self._server = server
        self._text: str | None = None
        self._opening: Mapping[str, Any] = {}
        self._buffer: str | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failed = False

    def show(self, text: str, opening: Mapping[str, Any]) -> None:
        """What is typed so far. ``opening`` is the response that it will ask for, but for this text."""
        self._text, self._opening = text, opening
        if self._task is None and not self._failed:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._changed.set()

    def done(self) -> None:
        """The turn has been sent, or given up."""
        self._text, self.prefilled, self._failed = None, None, False
        self._changed.set()

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        # Importing it takes a tenth of a second, and only those who type need it.
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        try:
            url, timeout = self._server.socket_url("/v1/responses"), self._server.patience.connect
            async with connect(url, additional_headers=self._server.headers, open_timeout=timeout) as socket:
                listening = asyncio.create_task(self._listen(socket))
                listening.add_done_callback(lambda _: self._changed.set())
                try:
                    await self._follow(socket, listening)
                finally:
                    listening.cancel()
        except (OSError, WebSocketException, TimeoutError):
            pass
        finally:
            self._failed = self._text is not None
            self._task, self._buffer, self.prefilled = None, None, None

    async def _follow(self, socket: ClientConnection, listening: asyncio.Task[None]) -> None:
        """Send every change, until nobody listens on the other side."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if listening.done():
                return
            text = self._text  # More may be typed while the socket takes it.
            for frame in edits(self._buffer, text, self._opening):
                await socket.send(json.dumps(frame))
            self._buffer = text

    async def _listen(self, socket: ClientConnection) -> None:
        """Until the socket is closed, or the server refuses the buffer; the turn itself will say why."""
        from websockets.exceptions import WebSocketException

        with suppress(WebSocketException):
            async for frame in socket:
                event = json.loads(frame)
                if event["type"] == "error":
                    return
                if event["type"] == "input_text_buffer.prefilled" and self._text is not None:
                    self.prefilled = event["tokens"], event["cached_tokens"]


def edits(before: str | None, after: str | None, opening: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The frames that make one buffer's text another's; None is no buffer."""
    if after is None:
        return [] if before is None else [{"type": "input_text_buffer.clear"}]
    if before is None:
        return [{"type": "input_text_buffer.append", "text": after, "response": dict(opening)}]
    common = len(os.path.commonprefix([before, after]))  # noqa: RUF071  # Characters are what is meant.
    frames: list[dict[str, Any]] = []
    if common < len(before):
        frames.append({"type": "input_text_buffer.truncate", "length": common})
    if common < len(after):
        frames.append({"type": "input_text_buffer.append", "text": after[common:]})
    return frames
