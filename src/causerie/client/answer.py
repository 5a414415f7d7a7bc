"""An answer as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Protocol

from causerie.client.retry import Opening, picked_up, repeated
from causerie.client.server import Patience
from causerie.client.streams import End
from causerie.errors import Cancelled, InvalidRequest, ResponseNotActive, ResponseNotFound, StreamExpired
from causerie.types import FinishReason, Usage


class Source(Opening, Protocol):
    """Where an answer comes from."""

    id: str | None
    end: End | None

    async def cancel(self) -> None: ...

    async def ack(self, characters: int) -> None: ...


class AsyncAnswer:
    """An async iterator over pieces of text, each character exactly once, whatever happens to the connection.

    It ends when the answer is whole, or was stopped by ``cancel``. Else it raises the error that the answer ended
    with, ``Cancelled`` if somebody else stopped it, or ``ConnectionLost``. A read that is cancelled, as by
    ``asyncio.timeout``, loses nothing: the next one goes on. An answer that is left alone goes on for a while on the
    server: ``cancel`` it, or use ``async with``.
    """

    def __init__(self, source: Source, patience: Patience) -> None:
        self._source = source
        self._patience = patience
        self._pieces: AsyncGenerator[str, None] = picked_up(source, patience)
        self._reading = asyncio.Lock()
        self._stopped = False
        self._settled = False
        self._given = 0
        self._error: Exception | None = None

    @property
    def id(self) -> str | None:
        """The server's name for it: the response's id, or the text's request id."""
        return self._source.id

    @property
    def finish_reason(self) -> FinishReason | None:
        """None until it has ended, and if it failed."""
        return None if self._source.end is None else self._source.end.reason

    @property
    def ended(self) -> bool:
        """Whether the server is done with it; what is left of it may still be read."""
        return self._source.end is not None or self._error is not None or self._settled

    @property
    def usage(self) -> Usage | None:
        return None if self._source.end is None else self._source.end.usage

    def __aiter__(self) -> AsyncAnswer:
        return self

    async def __anext__(self) -> str:
        while True:
            piece = await self._next()
            if piece is None:
                if self.finish_reason is FinishReason.CANCELLED and not self._stopped:
                    raise Cancelled("The answer was stopped before its end.")
                raise StopAsyncIteration
            if piece:
                self._given += len(piece)
                return piece

    async def begin(self) -> None:
        """Wait until the server has accepted it. Raises what it was refused with, or Cancelled if it was stopped."""
        while self._source.id is None:
            if await self._next() is None:
                raise Cancelled("The answer was stopped before it was asked for.")

    async def read(self) -> str:
        """The rest of it, when it has ended."""
        return "".join([piece async for piece in self])

    async def cancel(self) -> None:
        """Stop it. What had been said by then still comes, and then its end; nothing happens if it has ended."""
        self._stopped = True
        if not self.ended:
            with contextlib.suppress(ResponseNotFound, StreamExpired):
                await repeated(self._source.cancel, self._patience)
            self._settled = True

    async def ack(self, characters: int | None = None) -> None:
        """Tell the server that the first ``characters`` of it were shown, or all that was read of it so far.

        If it is stopped after that, the conversation keeps what was shown and nothing else. Without it, what had been
        said by then is kept. Nothing happens if it has ended. Raises InvalidRequest for more than was read, for less
        than before, and for texts, of which nothing is kept.
        """
        shown = self._given if characters is None else characters
        if shown > self._given:
            raise InvalidRequest(f"Only {self._given} characters have been read; {shown} cannot have been shown.")
        if not self.ended:
            with contextlib.suppress(ResponseNotActive):
                await repeated(lambda: self._source.ack(shown), self._patience)

    async def aclose(self) -> None:
        """Stop it, and leave."""
        try:
            await self.cancel()
        finally:
            async with self._reading:
                await self._pieces.aclose()

    async def __aenter__(self) -> AsyncAnswer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _next(self) -> str | None:
        async with self._reading:
            if self._error is not None:
                raise self._error
            try:
                return await anext(self._pieces, None)
            except asyncio.CancelledError:
                self._pieces = picked_up(self._source, self._patience)
                raise
            except Exception as error:
                self._error = error
                raise
