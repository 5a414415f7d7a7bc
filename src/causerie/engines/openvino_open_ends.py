"""Who may be added to OpenVINO GenAI's runtime at once.

The runtime (2026.4.1) hands out the last, partly filled block of a sequence that has ended without copying it. Two
requests that are added between the same two steps, continue the same ended sequence and differ inside that block
then write into the same memory, and one reads the other's words (``docs/log.md`` has the measurements). Whoever is
added after the other has run gets a copy; so the second has to wait for a step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

from causerie.engines.openvino_cache import chains

_Tail: TypeAlias = tuple[int, ...]
_OpenEnd: TypeAlias = tuple[int, _Tail]
"""A hash of the whole blocks before it, and the ids in the partly filled block."""


class OpenEnds:
    """The partly filled blocks of ``block`` tokens that ended sequences left, and who continues which.

    It may remember one that was evicted: then a request waits a step longer than it had to. At most ``capacity`` are
    remembered, the latest; there cannot be more in the cache.
    """

    def __init__(self, block: int, capacity: int) -> None:
        self._block = block
        self._capacity = capacity
        self._open: OrderedDict[_OpenEnd, None] = OrderedDict()
        self._tails: dict[int, set[_Tail]] = {}
        self._claims: dict[_OpenEnd, int] = {}

    def leave(self, ids: Sequence[int]) -> None:
        """A sequence has ended whose keys and values of ``ids`` are in the cache."""
        whole = len(ids) // self._block * self._block
        tail = tuple(ids[whole:])
        if not tail:
            return
        *_, (_, chain) = chains(ids, self._block)
        self._open[chain, tail] = None
        self._open.move_to_end((chain, tail))
        self._tails.setdefault(chain, set()).add(tail)
        if len(self._open) > self._capacity:
            (chain, tail), _ = self._open.popitem(last=False)
            self._tails[chain].discard(tail)
            if not self._tails[chain]:
                del self._tails[chain]

    def claim(self, sequence: int, prompt: Sequence[int]) -> bool:
        """Whether ``prompt`` may be added now; if so, the open ends that it continues are its own until ``release``."""
        wanted = {
            (chain, tail)
            for end, chain in chains(prompt, self._block)
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
        self._open.clear()
        self._tails.clear()
        self._claims.clear()
