"""A prompt that is still being written, and what of it can no longer change."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from causerie.chat.intake import ENCODE_INLINE, Intake, characters
from causerie.chat.reading import Reading
from causerie.chat.typed import Share
from causerie.engines.base import Update
from causerie.errors import InvalidRequest, RequestTooLarge
from causerie.text.growing import Settled
from causerie.types import ChatPrompt, TextPrompt

if TYPE_CHECKING:
    from causerie.chat.ahead import ReadAhead

_WORTH = 32
"""Characters that are worth encoding anew; more where a text is very long, since it is looked at as a whole."""

_PAUSE = 0.3
"""Seconds without a word after which the prompt may be as it will be committed."""

_FOLLOWS = 1.0
"""Seconds within which a committed prompt's request comes, and finds what was settled of it encoded."""

OpenPrompt: TypeAlias = ChatPrompt | TextPrompt
"""A prompt whose text, of a conversation the last message's, is still being written."""

OnPrefilled: TypeAlias = Callable[[int, int], None]
"""Told how many of the prompt's tokens are settled, and how many of these the engine has in its cache."""


class Typing:
    """One prompt that is being written: fed as the text comes, read ahead by the engine as it can, then committed.

    Made by ``ChatService.typing``; ``close`` it in a ``finally``. Its text is never logged, nor kept after that,
    save that a committed one is for a moment, in memory, for its request.
    """

    def __init__(
        self,
        ahead: ReadAhead,
        prompt: OpenPrompt,
        *,
        limit: int,
        share: Share,
        beside: int = 0,
        on_prefilled: OnPrefilled | None = None,
    ) -> None:
        self._ahead = ahead
        self._prompt = prompt
        self._limit = limit
        self._on_prefilled = on_prefilled
        self._buffer = io.StringIO()
        self._length = self._buffer.write(_text_of(prompt))
        self._around = characters(prompt) - self._length
        self._share = share
        self._beside = beside
        share.resize(beside + self._length)
        self._settled: Settled | None = None
        self._settled_length = 0
        self._encoding = False
        self._edits = 0
        self._given_up = False
        self._whole: Settled | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._reading: Reading | None = None
        self._stopped: asyncio.Event | None = None
        self._closed = False
        self.read = 0
        """Tokens of ``ids`` that are in the engine's cache, as far as is known."""
        self.whole: Sequence[int] = ()
        """After a pause, the ids of all that there is, as they would be committed now, until they are read."""
        self._settle()

    def __len__(self) -> int:
        """How many characters it has."""
        return self._length

    @property
    def text(self) -> str:
        return self._buffer.getvalue()

    @property
    def ids(self) -> Sequence[int]:
        """The ids that the prompt begins with however it goes on, as far as they have been worked out."""
        return () if self._settled is None else self._settled.ids

    def append(self, text: str) -> None:
        """Add what was written. Raises RequestTooLarge or TypedTextLimit, and then adds nothing."""
        self._check_open()
        if self._length + len(text) > self._limit:
            raise RequestTooLarge(
                f"The text would have {self._length + len(text)} characters; this server takes {self._limit}."
            )
        self._share.resize(self._beside + self._length + len(text))
        self._length += self._buffer.write(text)
        self._go_on()
        self._settle_if_worth()

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` characters. Raises InvalidRequest if there are fewer."""
        self._check_open()
        if not 0 <= length <= self._length:
            raise InvalidRequest(f"There are {self._length} characters, of which {length} cannot be kept.")
        if length < self._length:
            self._buffer.truncate(self._buffer.seek(length))
            self._length = length
            self._share.resize(self._beside + length)
            self._forget()
            self._go_on()
            self._given_up = False
            self._settle()

    def clear(self) -> None:
        """Empty it."""
        self.truncate(0)

    async def commit(self) -> OpenPrompt:
        """The prompt as it was written, for ``ChatService.create``, and the end of the buffer.

        A piece of it that the engine is reading is waited for, no longer than a step; what it has not begun, or reads
        gently, is dropped.
        """
        self._check_open()
        prompt, settled = _with_text(self._prompt, self.text), self._whole or self._settled
        self.close()
        if self._stopped is not None:
            await self._stopped.wait()
        if settled is not None and isinstance(prompt, ChatPrompt):
            self._ahead.intake.begin(prompt, settled)
            asyncio.get_running_loop().call_later(_FOLLOWS, self._ahead.intake.forget, prompt)
        return prompt

    def close(self) -> None:
        """Read no more of it. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._share.resize(0)
        self._stop_pause()
        self._ahead.leave(self)
        self._forget()
        if self._reading is not None:
            stopped = asyncio.Event()
            self._ahead.reader.cancel(self._reading, stopped.set)
            # What is read gently ends between two steps, and keeps what it has; so the request may follow at once.
            self._stopped = None if self._reading.gently else stopped
        self._ahead.go_on()

    def begin(self, until: int, *, gently: bool) -> Reading:
        """The piece of it up to ``until``, which is on its way to the engine now."""
        edits = self._edits

        def on_progress(read: int) -> None:
            if edits == self._edits:
                self.has_read(read)

        size = until - self.read
        self._reading = Reading(self.ids, until, self.read, size, on_progress, self._on_end, gently=gently)
        return self._reading

    def begin_whole(self, known: int) -> Reading:
        """All of it as it stands, of which ``known`` tokens are cached, on its way to the engine now; only once."""
        ids, self.whole = self.whole, ()
        self._reading = Reading(ids, len(ids), known, len(ids) - known, lambda _: None, self._on_end)
        return self._reading

    def has_read(self, tokens: int) -> None:
        self.read = tokens
        if self._on_prefilled is not None:
            self._on_prefilled(len(self.ids), tokens)

    def give_up(self) -> None:
        """Read it no further as it stands."""
        self._given_up = True
        self._ahead.leave(self)
        self._forget()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the buffer was committed or closed")

    def _forget(self) -> None:
        self._settled, self.read = None, 0
        self._whole, self.whole = None, ()
        self._edits += 1

    def _on_end(self, failure: Update | None) -> None:
        interrupted = self._reading is not None and self._reading.interrupted
        self._reading = None
        if failure is not None and not interrupted:
            self.give_up()

    def _go_on(self) -> None:
        """More is being written."""
        self._stop_pause()
        self._whole, self.whole = None, ()
        if self._ahead.reads_whole and not self._closed:
            self._pause = asyncio.get_running_loop().call_later(_PAUSE, self._on_pause)

    def _stop_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _on_pause(self) -> None:
        if self._encoding:
            self._go_on()
        else:
            self._settle(whole=True)

    def _settle_if_worth(self) -> None:
        if self._length - self._settled_length >= max(_WORTH, self._length // 1024):
            self._settle()

    def _settle(self, *, whole: bool = False) -> None:
        """Work out which ids are settled, unless that is being done already; it is looked at again after that."""
        if self._closed or self._given_up or self._encoding or not self._ahead.enter(self):
            return
        prompt = _with_text(self._prompt, self.text)
        work = partial(_settled, self._ahead.intake, prompt, self._settled, whole)
        self._settled_length = self._length
        if self._around + self._length < ENCODE_INLINE:
            self._take(*work())
            return
        self._encoding = True
        future = asyncio.get_running_loop().run_in_executor(self._ahead.encoders, work)
        future.add_done_callback(partial(self._on_encoded, self._edits))

    def _on_encoded(self, edits: int, done: asyncio.Future[tuple[Settled | None, Settled | None]]) -> None:
        self._encoding = False
        if done.cancelled() or self._closed:
            return
        if edits != self._edits:
            self._settle()
        else:
            self._take(*done.result())
            self._settle_if_worth()

    def _take(self, settled: Settled | None, whole: Settled | None) -> None:
        if settled is None:
            self.give_up()
            return
        if list(settled.ids[: len(self.ids)]) != list(self.ids):
            self._forget()
        self._settled = settled
        if whole is not None and self._settled_length == self._length:
            self._whole, self.whole = whole, whole.ids
        self._ahead.go_on()


def _settled(
    intake: Intake, prompt: OpenPrompt, before: Settled | None, whole: bool
) -> tuple[Settled | None, Settled | None]:
    """What is settled, and with ``whole`` all of the prompt as it stands."""
    settled = intake.settled(prompt, before)
    return settled, intake.whole(prompt, settled) if whole and settled is not None else None


def _text_of(prompt: OpenPrompt) -> str:
    return prompt.text if isinstance(prompt, TextPrompt) else prompt.messages[-1].content


def _with_text(prompt: OpenPrompt, text: str) -> OpenPrompt:
    if isinstance(prompt, TextPrompt):
        return TextPrompt(text)
    *earlier, last = prompt.messages
    return replace(prompt, messages=(*earlier, replace(last, content=text)))
