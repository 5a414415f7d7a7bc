"""Reading a prompt while it is still being written, so that little of it is left when it is done.

What is read lies in the engine's prefix cache and nowhere else: it reserves nothing, others may evict it, and the
finished prompt goes the way of every other, on which it finds its beginning cached. Everything here runs on the event
loop, save that long texts are encoded in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple

from causerie.chat.buffer import Typing
from causerie.chat.intake import Intake
from causerie.chat.reading import PromptReader, Reading
from causerie.config import Settings
from causerie.engines.base import Engine

BESIDE_STREAMS = 32
"""Longest piece, in tokens, while answers are written: they stand still for as long as it takes (``docs/log.md``).

A block of the usual size. What is shorter is not reused, and takes hardly less time behind a long text.
"""

_GENTLY_BEHIND = 1024
"""Tokens behind which a text is read gently beside streams: it costs more in all, and before that a piece is short."""

_GENTLY = 4
"""Blocks that may be left of such a text: some seconds of what anybody types.

If there are more it was pasted, or the engine is too busy, and is sooner done with whole pieces.
"""

_ALONE = 2
"""Times ``prefill_piece`` on an idle engine: large pieces are faster, and who comes meanwhile waits for one only."""


class Spare(NamedTuple):
    """Tokens of the cache that may be spent on all that is read ahead, and whether no answer is being written."""

    cache: int
    alone: bool


class ReadAhead:
    """Chooses what is read when the engine has nothing better to do. The buffers take turns, piece by piece.

    No more than ``max_batch_size`` buffers are read ahead at once, none where the engine reuses nothing. ``spare``
    says what may be spent, None if nothing now.
    """

    def __init__(
        self,
        engine: Engine,
        intake: Intake,
        encoders: Executor,
        settings: Settings,
        *,
        next_sequence: Callable[[], int],
        spare: Callable[[], Spare | None],
    ) -> None:
        self._engine = engine
        self._block = engine.info.prefix_block
        self._most = settings.max_batch_size if self._block else 0
        self._piece = settings.prefill_piece
        self._spare = spare
        self._buffers: list[Typing] = []
        self.intake = intake
        self.reads_whole = engine.info.partial_blocks
        """Whether it is worth while to read a prompt to its end that may yet go on."""
        self.encoders = encoders
        self.reader = PromptReader(
            engine, piece=settings.prefill_piece, next_sequence=next_sequence, ahead=self._next_piece
        )

    def enter(self, buffer: Typing) -> bool:
        """Whether it is one of those that are read ahead."""
        if buffer not in self._buffers:
            if len(self._buffers) >= self._most:
                return False
            self._buffers.append(buffer)
        return True

    def leave(self, buffer: Typing) -> None:
        if buffer in self._buffers:
            self._buffers.remove(buffer)

    def go_on(self) -> None:
        """Read on a moment later: whoever was just told of something has the first turn."""
        if self._buffers:
            asyncio.get_running_loop().call_soon(self.reader.wake)

    def close(self) -> None:
        """Read nothing more ahead, of any buffer."""
        self._most = 0
        self._buffers.clear()

    def _next_piece(self) -> Reading | None:
        """The piece to be read now, if there is one and may be."""
        spare = self._spare() if self._buffers else None
        if spare is None:
            return None
        longest = _ALONE * self._piece if spare.alone else min(self._piece, BESIDE_STREAMS)
        size = max(self._block, longest // self._block * self._block)
        if sum(buffer.read for buffer in self._buffers) + size > spare.cache:
            return None
        for buffer in list(self._buffers):
            piece = self._piece_of(buffer, size, beside=not spare.alone)
            if piece is None and spare.alone:
                piece = self._whole_of(buffer, size)
            if piece is not None:
                self._buffers.remove(buffer)
                self._buffers.append(buffer)
                return piece
        return None

    def _piece_of(self, buffer: Typing, size: int, *, beside: bool) -> Reading | None:
        ids = buffer.ids
        until = (len(ids) - 1) // self._block * self._block
        if until <= buffer.read:
            return None
        known = min(self._engine.cached(ids), until)
        if known < buffer.read:
            # Evicted: others need the cache, and to read all of it again would be one very long piece.
            buffer.give_up()
            return None
        if known > buffer.read:
            buffer.has_read(known)
        # Whoever was told of that may have closed or edited it.
        if known >= until or buffer.ids is not ids:
            return None
        gently = beside and known >= _GENTLY_BEHIND and until - known <= _GENTLY * self._block
        return buffer.begin(min(known + size, until), gently=gently)

    def _whole_of(self, buffer: Typing, size: int) -> Reading | None:
        """All of what seems to be done, its last words and the template's: at commit a single token is left.

        That is a step of its own for nothing where more is written, so nobody else may be waiting for it.
        """
        left = len(buffer.whole) - (known := self._engine.cached(buffer.whole))
        return buffer.begin_whole(known) if 0 < left <= size else None
