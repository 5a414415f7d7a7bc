"""Reading long prompts in pieces, so that nobody waits for the whole of somebody else's.

One piece is in flight per engine. After each piece the next prompt in line has its turn, and between two pieces
the engine's running streams take a step. What a piece read stays in the engine's prefix cache; so the next piece
costs only what is new.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from causerie.engines.base import EndReason, Engine, Update


class Reading:
    """One prompt on its way into the cache: its first ``until`` tokens, ``piece`` at a time."""

    __slots__ = (
        *("_all_found", "_cached", "done", "end", "gently", "ids", "interrupted"),
        *("on_progress", "on_ready", "piece", "sequence", "until"),
    )

    def __init__(
        self,
        ids: Sequence[int],
        until: int,
        done: int,
        piece: int,
        on_progress: Callable[[int], None],
        on_ready: Callable[[Update | None], None],
        *,
        gently: bool = False,
    ) -> None:
        self.ids = ids
        self.until = until
        self.done = done
        self.piece = piece
        self.on_progress = on_progress
        self.on_ready = on_ready
        self.gently = gently
        self.interrupted = False
        """Whether it had to give way: what ``on_ready`` is told then is no failure."""
        self.sequence: int | None = None
        self.end = done
        """Where the piece ends that is being read, or was last."""
        self._cached: int | None = None
        self._all_found = True

    def cached_before(self, cached: int | None) -> int | None:
        """How much of the prompt was in the cache before any of it was read here; None where the engine cannot say.

        ``cached`` is what the engine found of the request that follows: mostly what was read for it here.
        """
        return cached if self._all_found else self._cached

    @property
    def cached(self) -> int | None:
        """What the engine found of it in its cache, by the first piece that was not all there."""
        return self._cached

    def found(self, cached: int | None) -> None:
        """The engine says how much of the piece was in the cache; a token at least is always computed again."""
        if self._all_found:
            self._cached = cached
            self._all_found = cached is not None and cached >= self.end - 1


class PromptReader:
    """Takes turns between the prompts that are being read. Runs on the event loop; ``update`` is fed by the service.

    ``ahead`` gives a piece of something that nobody waits for yet, if there is one; see ``wake``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        piece: int,
        next_sequence: Callable[[], int],
        ahead: Callable[[], Reading | None] = lambda: None,
    ) -> None:
        block = engine.info.prefix_block
        self._engine = engine
        self._block = block
        # A cache keeps whole blocks only, so a piece that ended inside one would be read again.
        self._piece = max(block, piece // block * block) if block else 0
        self._next_sequence = next_sequence
        self._ahead = ahead
        self._turns: deque[Reading] = deque()
        self._in_flight: Reading | None = None

    def begin(
        self,
        ids: Sequence[int],
        *,
        whole: bool,
        on_progress: Callable[[int], None],
        on_ready: Callable[[Update | None], None],
    ) -> Reading | None:
        """Read ``ids`` in pieces until at most one piece is left, or, with ``whole``, until no whole block is.

        Returns None if there is nothing to read ahead: then neither callback is called. ``on_progress`` gets the
        number of tokens read. ``on_ready`` gets None, or the update that says why the engine failed. Either way, what
        is being read gently gives way.
        """
        if not self._block or self._engine.info.takes_turns:
            return None
        self._interrupt()
        last = len(ids) - 1  # One token at least is left to be read with the request itself.
        unit = self._block if whole else self._piece
        until = last // unit * unit
        known = min(self._engine.cached(ids), until)
        if until - known <= 0 or (not whole and len(ids) - known <= self._piece):
            return None
        reading = Reading(ids, until, known, self._piece, on_progress, on_ready)
        self._turns.append(reading)
        self._next_piece()
        return reading

    def cancel(self, reading: Reading, on_stopped: Callable[[], None]) -> None:
        """Read no more of it. Its callbacks are not called any more; ``on_stopped`` is, once the engine is done.

        Only for one whose ``on_ready`` was not called.
        """
        if reading in self._turns:
            self._turns.remove(reading)
            on_stopped()
            return
        reading.on_progress = lambda _: None
        reading.on_ready = lambda _: on_stopped()
        reading.until = 0
        if reading.sequence is not None:
            self._engine.cancel(reading.sequence)

    def update(self, update: Update) -> bool:
        """Take an engine's update; False if it is not of a piece."""
        reading = self._in_flight
        if reading is None or reading.sequence != update.sequence:
            return False
        if update.ended is None:
            return True
        self._in_flight = None
        reading.sequence = None
        if update.ended is EndReason.PREFILLED:
            reading.found(update.cached_tokens)
            reading.done = min(reading.done + reading.piece, max(reading.until, reading.done))
            reading.on_progress(reading.done)
            if reading.done < reading.until:
                self._turns.append(reading)
                self._next_piece()
                return True
        # Before the next piece, so that the engine meets the finished prompt's own request first.
        reading.on_ready(None if update.ended is EndReason.PREFILLED else update)
        self._next_piece()
        return True

    def wake(self) -> None:
        """Where no piece is in flight and none is waiting, take one that is read ahead."""
        if self._in_flight is None and not self._turns and (reading := self._ahead()) is not None:
            self._turns.append(reading)
            self._next_piece()

    def _interrupt(self) -> None:
        """A piece that is read gently takes many steps; nobody who was admitted shall wait for that, or go beside."""
        reading = self._in_flight
        if reading is not None and reading.gently and reading.sequence is not None:
            reading.interrupted = True
            self._engine.cancel(reading.sequence)

    def _next_piece(self) -> None:
        if self._in_flight is None and self._turns:
            reading = self._in_flight = self._turns.popleft()
            reading.sequence = self._next_sequence()
            reading.end = min(reading.done + reading.piece, reading.until)
            self._engine.prefill(reading.sequence, reading.ids[: reading.end], gently=reading.gently)
