"""The client for code without an event loop: the asynchronous one, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, TypeVar, Unpack

from causerie.client.answer import AsyncAnswer
from causerie.client.asynchronous import AsyncChat, AsyncClient
from causerie.client.server import Patience
from causerie.client.streams import Sampling
from causerie.types import FinishReason, Usage

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread. Close it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="causerie-client", daemon=True)
        # Work is given to the loop under it, so that none comes behind the loop's end, where nobody would do it. A
        # signal's handler may call in the middle of a call of its own thread.
        self._lock = threading.RLock()
        self._closing = False
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for it. Whoever is interrupted meanwhile (Ctrl-C) cancels it. Raises RuntimeError once it closes."""
        with self._lock:
            if self._closing:
                work.close()
                raise _closed()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return _outcome(future)
        except CancelledError:
            if self._closing:
                raise _closed() from None
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """After ``last``. Safe to call twice, and from two threads: both wait for the end."""
        with self._lock:
            first, self._closing = not self._closing, True
        if not first:
            self._thread.join()
            return
        try:
            _outcome(asyncio.run_coroutine_threadsafe(last(), self._loop))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._settle()
            self._loop.close()

    def _settle(self) -> None:
        """End what other threads still wait for. The loop has stopped, and this thread runs it."""
        while tasks := asyncio.all_tasks(self._loop):
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())


def _outcome(future: Future[T]) -> T:
    """Wait for it; whoever is interrupted meanwhile cancels it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _closed() -> RuntimeError:
    return RuntimeError("This client is closed.")


class Client:
    """``AsyncClient`` without ``async``. Its methods may be called from any thread; close it, or use ``with``."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, patience: Patience | None = None
    ) -> None:
        self._client = AsyncClient(url, api_key=api_key, patience=patience)
        self._loop = _Loop()

    def text(self, prompt: str, **sampling: Unpack[Sampling]) -> Answer:
        """See ``AsyncClient.text``."""
        return Answer(self._client.text(prompt, **sampling), self._loop)

    def chat(
        self,
        *,
        instructions: str | None = None,
        conversation: str | None = None,
        after: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> Chat:
        """See ``AsyncClient.chat``."""
        chat = self._client.chat(instructions=instructions, conversation=conversation, after=after, **sampling)
        return Chat(chat, self._loop)

    def create_conversation(self, metadata: Mapping[str, str] | None = None) -> str:
        """See ``AsyncClient.create_conversation``."""
        return self._loop.run(self._client.create_conversation(metadata))

    def close(self) -> None:
        """See ``AsyncClient.aclose``. What other threads still wait for then raises, as every later call does."""
        self._loop.close(self._client.aclose)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Chat:
    """``AsyncChat`` without ``async``."""

    def __init__(self, chat: AsyncChat, loop: _Loop) -> None:
        self._chat = chat
        self._loop = loop

    @property
    def last(self) -> str | None:
        """See ``AsyncChat.last``."""
        return self._chat.last

    @property
    def typed(self) -> str:
        """See ``AsyncChat.typed``."""
        return self._chat.typed

    @property
    def prefilled(self) -> tuple[int, int] | None:
        """See ``AsyncChat.prefilled``."""
        return self._chat.prefilled

    def type(self, text: str) -> None:
        """See ``AsyncChat.type``."""
        self._loop.run(_on_loop(self._chat.type, text))

    def truncate(self, length: int) -> None:
        """See ``AsyncChat.truncate``."""
        self._loop.run(_on_loop(self._chat.truncate, length))

    def send(self, text: str | None = None) -> Answer:
        """See ``AsyncChat.send``."""
        return Answer(self._loop.run(self._chat.send(text)), self._loop)

    def interrupt(self) -> None:
        """See ``AsyncChat.interrupt``."""
        self._loop.run(self._chat.interrupt())


class Answer:
    """``AsyncAnswer`` without ``async``: an iterator over pieces of text."""

    def __init__(self, answer: AsyncAnswer, loop: _Loop) -> None:
        self._answer = answer
        self._loop = loop

    @property
    def id(self) -> str | None:
        """See ``AsyncAnswer.id``."""
        return self._answer.id

    @property
    def finish_reason(self) -> FinishReason | None:
        """See ``AsyncAnswer.finish_reason``."""
        return self._answer.finish_reason

    @property
    def usage(self) -> Usage | None:
        return self._answer.usage

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> str:
        piece = self._loop.run(_next(self._answer))
        if piece is None:
            raise StopIteration
        return piece

    def read(self) -> str:
        """See ``AsyncAnswer.read``."""
        return self._loop.run(self._answer.read())

    def cancel(self) -> None:
        """See ``AsyncAnswer.cancel``."""
        self._loop.run(self._answer.cancel())

    def ack(self, characters: int | None = None) -> None:
        """See ``AsyncAnswer.ack``."""
        self._loop.run(self._answer.ack(characters))

    def close(self) -> None:
        """See ``AsyncAnswer.aclose``."""
        self._loop.run(self._answer.aclose())

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _on_loop(call: Callable[[T], None], value: T) -> None:
    call(value)


async def _next(answer: AsyncAnswer) -> str | None:
    return await anext(answer, None)
