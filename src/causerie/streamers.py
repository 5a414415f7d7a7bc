"""Streamers for people who call ``model.generate`` of transformers themselves; no torch is imported for it.

``generate`` runs on a thread and puts tokens into its ``streamer``; an event loop consumes them. Nothing is polled:
each step wakes the loop once. Unlike transformers' own streamers these take batches, and a consumer that leaves
stops the generation: ``run`` passes on the stopping criterion that this needs.

This follows the streamer interface of transformers 5 (``put`` and ``end``), which its authors call unfinished. It may
change, and this module with it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from causerie.text.detokenizer import Detokenization, Detokenizer

T = TypeVar("T")


class Stream(Generic[T]):
    """An async iterator for one consumer. Ends with the generation, or raises what ``generate`` raised.

    A consumer leaves by ``aclose`` or by being cancelled while it waits (a timeout around a wait does that, too).
    """

    def __init__(self, on_leave: Callable[[], None]) -> None:
        self._items: deque[T] = deque()
        self._on_leave = on_leave
        self._closed = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                error, self._error = self._error, None
                raise error if error is not None else StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                await self.aclose()
                raise
            finally:
                self._waiter = None
        return self._items.popleft()

    async def aclose(self) -> None:
        """Leave: what is still to come is dropped. Safe to call twice and after the end."""
        self._items.clear()
        self._error = None
        if not self._closed:
            self._close()
            self._on_leave()

    def _push(self, item: T) -> None:
        if not self._closed:
            self._items.append(item)
            self._wake()

    def _close(self, error: BaseException | None = None) -> None:
        if not self._closed:
            self._closed = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Streamer(ABC):
    """The side of ``generate``: public methods are for any thread, ``_step`` and ``_finish`` run on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._prompted = False
        self._stopped = False

    @property
    def stopping_criteria(self) -> list[Callable[..., bool]]:
        """For ``generate(stopping_criteria=…)``: ends it within one step once nobody listens any more."""
        return [lambda *_, **__: self._stopped]

    def put(self, value: Any) -> None:
        """Called by ``generate``: first with the prompts, which are dropped, then with one id for each row."""
        if not self._prompted:
            self._prompted = True
            return
        ids = value.tolist()
        # Assisted generation puts several ids of its one row at once, as a matrix.
        for step in [ids] if len(value.shape) == 1 else map(list, zip(*ids, strict=True)):
            self._check(len(step))
            self._post(self._step, step)

    def end(self) -> None:
        """Called by ``generate`` when it is done."""
        self._post(self._finish, None)

    def fail(self, error: BaseException) -> None:
        """End with an error, which every consumer still waiting is given after the ids that came before it."""
        self._post(self._finish, error)

    def run(self, generate: Callable[..., T], /, **arguments: Any) -> T | None:
        """Call ``generate(**arguments)`` with this streamer, on the caller's thread, and end the streams after it.

        What it raises goes to the consumers; then None is returned. What is no error but ends the thread
        (``KeyboardInterrupt``, ``SystemExit``) goes on to the caller, and the consumers get a RuntimeError of it.
        """
        criteria = [*arguments.pop("stopping_criteria", ()), *self.stopping_criteria]
        try:
            result = generate(**arguments, streamer=self, stopping_criteria=criteria)
        except Exception as error:
            self.fail(error)
            return None
        except BaseException as error:
            ended = RuntimeError(f"generate was ended by {type(error).__name__}")
            ended.__cause__ = error
            self.fail(ended)
            raise
        self.end()
        return result

    def stop(self) -> None:
        """Stop the generation at its next step."""
        self._stopped = True

    def _post(self, callback: Callable[[Any], None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            # The loop is closed: nobody will ever listen again.
            self._stopped = True

    def _check(self, batch: int) -> None:
        """Refuse a batch that this streamer was not made for, by raising."""
        return

    @abstractmethod
    def _step(self, ids: list[int]) -> None: ...

    @abstractmethod
    def _finish(self, error: BaseException | None) -> None: ...


class RawStreamer(_Streamer):
    """An async iterator over steps: for each, a list with one token id per row of the batch.

    Ids are as ``generate`` puts them: a row that has ended goes on with padding until the last has.
    Make it on the event loop that consumes it, or name that as ``loop``. One consumer.
    """

    def __init__(self, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop)
        self._stream: Stream[list[int]] = Stream(self.stop)

    def __aiter__(self) -> Stream[list[int]]:
        return self._stream

    async def aclose(self) -> None:
        """Leave, and stop the generation."""
        await self._stream.aclose()

    def _step(self, ids: list[int]) -> None:
        self._stream._push(ids)

    def _finish(self, error: BaseException | None) -> None:
        self._stream._close(error)


class BatchTextStreamer(_Streamer):
    """Text of a batch: ``rows[i]`` is an async iterator over the text of row ``i``, for a consumer each.

    Text comes in whole characters, and joined it is the tokenizer's ``decode(..., skip_special_tokens=True)`` of the
    row's ids up to its own end-of-text; what ``generate`` pads it with is no part of it. When every row has ended or
    has been left, the generation stops.

    Iterating over the streamer itself gives steps instead: a list with the text that each row gained (maybe empty), or
    None for a row that has ended. Use one way or the other; with steps, too, ``rows[i].aclose()`` is how row ``i`` is
    left, and gives None from then on.

    ``tokenizer`` is a fast one of transformers. ``end_ids`` end a row; by default the tokenizer's end-of-text alone, so
    name them if the model has more (``model.generation_config.eos_token_id``).
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: int = 1,
        *,
        end_ids: Collection[int] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(loop)
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise TypeError(f"{type(tokenizer).__name__} has no backend_tokenizer; a fast tokenizer is needed.")
        default = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self._end_ids = frozenset(default if end_ids is None else end_ids)
        detokenization = Detokenization(tokenizer.backend_tokenizer, frozenset(tokenizer.all_special_ids))
        self._decoders: list[Detokenizer | None] = [detokenization.start() for _ in range(rows)]
        self.rows: tuple[Stream[str], ...] = tuple(Stream(self._left) for _ in range(rows))
        self._steps: Stream[list[str | None]] = Stream(self.stop)

    def __aiter__(self) -> Stream[list[str | None]]:
        return self._steps

    async def aclose(self) -> None:
        """Leave all rows, and stop the generation."""
        await self._steps.aclose()
        for row in self.rows:
            await row.aclose()

    def _check(self, batch: int) -> None:
        if batch != len(self.rows):
            raise ValueError(f"generate got a batch of {batch}, but this streamer was made for {len(self.rows)} rows.")

    def _left(self) -> None:
        if all(row._closed for row in self.rows):
            self.stop()

    def _step(self, ids: list[int]) -> None:
        self._steps._push([self._gain(index, id_) for index, id_ in enumerate(ids)])

    def _gain(self, index: int, id_: int) -> str | None:
        decoder = self._decoders[index]
        if decoder is None or self.rows[index]._closed:
            return None
        if id_ in self._end_ids:
            return self._end_row(index, decoder)
        text = decoder.feed([id_])
        if text:
            self.rows[index]._push(text)
        return text

    def _end_row(self, index: int, decoder: Detokenizer, error: BaseException | None = None) -> str:
        text = decoder.flush()
        self._decoders[index] = None
        if text:
            self.rows[index]._push(text)
        self.rows[index]._close(error)
        self._left()
        return text

    def _finish(self, error: BaseException | None) -> None:
        rest = [
            None if decoder is None else self._end_row(index, decoder, error)
            for index, decoder in enumerate(self._decoders)
        ]
        if any(rest):
            self._steps._push(list(rest))
        self._steps._close(error)
