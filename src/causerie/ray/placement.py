"""Which engine a prompt is sent to: where most of it was read, if there is room, else where the least is going on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from causerie.engines.base import EngineInfo
from causerie.ray.known import KnownPrefixes

LEAST_SHARE, LEAST_TOKENS = 0.1, 128
"""How much of a prompt an engine has to have read for the prompt to be sent there: less is read again in no time."""


def slack(places: int) -> int:
    """How many more sequences than the least busy one an engine may have, and still be the one that is wished for."""
    return max(1, places // 4)


def whole(one: EngineInfo, replicas: int) -> EngineInfo:
    """So many engines as one."""
    return replace(one, kv_tokens=one.kv_tokens * replicas, max_sequences=one.max_sequences * replicas)


class Placement:
    """What an ingress knows of engines that are all as ``one``: which are there, what each has read, and what it has of
    this ingress's. Other ingresses give them work too; of that the router hears (``causerie.ray.routing``).
    """

    def __init__(self, one: EngineInfo) -> None:
        self._block = one.prefix_block
        self._cache_blocks = one.kv_tokens // max(1, self._block)
        self._places = one.max_sequences
        self._there: frozenset[str] = frozenset()
        self._known: dict[str, KnownPrefixes] = {}
        self._busy: Counter[str] = Counter()
        self._doubtful: set[str] = set()

    def is_there(self, running: Iterable[str]) -> None:
        """These engines run, and no others."""
        self._there = frozenset(running)
        self._doubtful.clear()
        for gone in set(self._known) - self._there:
            del self._known[gone]

    def known(self, prompt: Sequence[int]) -> int:
        """How many tokens at the head of ``prompt`` some engine has probably read."""
        return max((known.known(prompt) for known in self._known.values()), default=0)

    def choose(self, prompt: Sequence[int], *, least: int | None = None) -> str:
        """The engine to be asked first; none where none is known to be there.

        One that has read less than ``least`` tokens of ``prompt`` is not preferred for it.
        """
        if not self._there:
            return ""
        least = max(LEAST_TOKENS, int(LEAST_SHARE * len(prompt))) if least is None else least
        idlest = min(map(self._load, self._there))
        known = {replica: known.known(prompt) for replica, known in self._known.items()}
        best = max(known, key=lambda replica: (known[replica], -self._busy[replica]), default="")
        room = min(self._places, idlest[1] + slack(self._places) + 1)
        if best and known[best] >= least and self._load(best) < (False, room):
            return best
        return random.choice([replica for replica in self._there if self._load(replica) == idlest])

    def take(self, replica: str) -> None:
        """It has one more."""
        self._busy[replica] += 1

    def leave(self, replica: str) -> None:
        """It has one less."""
        self._busy[replica] -= 1
        if not self._busy[replica]:
            del self._busy[replica]

    def has_read(self, replica: str, ids: Sequence[int]) -> None:
        if self._block and replica in self._there:
            known = self._known.setdefault(replica, KnownPrefixes(self._block, self._cache_blocks))
            known.read(ids)

    def answered(self, replica: str) -> None:
        """It has taken something, so it is there."""
        self._doubtful.discard(replica)

    def lost(self, replica: str) -> None:
        """Something that was there is lost; ask others first, until it is known to be there."""
        self._doubtful.add(replica)
        self._known.pop(replica, None)

    def _load(self, replica: str) -> tuple[bool, int]:
        return replica in self._doubtful, self._busy[replica]
