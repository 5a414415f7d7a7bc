"""A mirror of OpenVINO GenAI's prefix cache: what it probably holds, and who may be added to it at once.

The runtime (2026.4.1) does not say what it reuses, and hands out the last, partly filled block of a sequence that has
ended without copying it. Two requests that are added between the same two steps, continue the same ended sequence
and differ inside that block then write into the same memory, and one reads the other's words (``docs/log.md`` has
the measurements). Whoever is added after the other has run gets a copy; so the second has to wait for a step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

_Tail: TypeAlias = tuple[int, ...]
_OpenEnd: TypeAlias = tuple[int, _Tail]
"""A hash of the whole blocks before it, and the ids in the partly filled block."""


class CacheMirror:
    """Follows the cache's ``capacity`` blocks of ``block`` tokens by what was computed last.

    It may believe that something is cached which was evicted: then a request costs more or waits a step longer than
    it had to, and no text changes. So it is not a source for ``cached_tokens``. What must never be missing from it is
    an ended sequence's open end. ``known`` may be called from any thread.
    """

    def __init__(self, block: int, capacity: int) -> None:
        self._block = block
        self._capacity = capacity
        self._lock = threading.Lock()
        self._whole: OrderedDict[int, None] = OrderedDict()
        self._open: OrderedDict[_OpenEnd, None] = OrderedDict()
        self._tails: dict[int, set[_Tail]] = {}
        self._claims: dict[_OpenEnd, int] = {}

    def known(self, ids: Sequence[int]) -> int:
        """How many tokens at the head of ``ids`` are probably cached, in whole blocks."""
        with self._lock:
            known = 0
            for end, chain in self._chains(ids):
                if end and chain not in self._whole:
                    break
                known = end
            return known

    def computed(self, ids: Sequence[int], *, ended: bool) -> None:
        """The keys and values of ``ids`` are in the cache; ``ended`` if their sequence will add no more."""
        with self._lock:
            chain = 0
            for end, chain in self._chains(ids):
                if end:
                    self._whole[chain] = None
                    self._whole.move_to_end(chain)
            while len(self._whole) > self._capacity:
                self._whole.popitem(last=False)
            tail = tuple(ids[len(ids) // self._block * self._block :])
            if ended and tail:
                self._leave_open(chain, tail)

    def claim(self, sequence: int, prompt: Sequence[int]) -> bool:
        """Whether ``prompt`` may be added now; if so, the open ends that it continues are its own until ``release``."""
        wanted = {
            (chain, tail)
            for end, chain in self._chains(prompt)
            for tail in self._tails.get(chain, ())
            if tuple(prompt[end : end + len(tail)]) == tail
        }
        if not wanted.isdisjoint(self._claims):
            return False
        self._claims.update(dict.fromkeys(wanted, sequence))
        return True

    def release(self, sequence: int) -> None:
        """``sequence`` has run a step, or never will."""
        if self._claims:
            self._claims = {end: owner for end, owner in self._claims.items() if owner != sequence}

    def clear(self) -> None:
        """The cache was made anew."""
        with self._lock:
            self._whole.clear()
            self._open.clear()
            self._tails.clear()
            self._claims.clear()

    def _chains(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The place behind each whole block, the very start first, and a hash of all before it."""
        chain = 0
        yield 0, chain
        for end in range(self._block, len(ids) + 1, self._block):
            chain = hash((chain, *ids[end - self._block : end]))
            yield end, chain

    def _leave_open(self, chain: int, tail: _Tail) -> None:
        self._open[chain, tail] = None
        self._open.move_to_end((chain, tail))
        self._tails.setdefault(chain, set()).add(tail)
        if len(self._open) > self._capacity:
            (chain, tail), _ = self._open.popitem(last=False)
            self._tails[chain].discard(tail)
            if not self._tails[chain]:
                del self._tails[chain]
