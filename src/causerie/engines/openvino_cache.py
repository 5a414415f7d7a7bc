"""A mirror of OpenVINO GenAI's prefix cache, which does not say how many prompt tokens it reused.

The runtime's rules, as its source has them and as prefill times confirm (``docs/log.md``):

- A prompt is looked up when it is added: whole blocks from the start on, and where the cache has no more of them, the
  shortest partly filled one that fits. A prompt that is there to its end has its last token computed again.
- Blocks are registered under what they hold when a step hands them out, those of running sequences too. The last one
  of a sequence is registered anew with every token; if others hold it as well, the sequence gets a copy.
- The blocks of a sequence that ends stay until they are needed. The first to go is the one that was longest ago given a
  prompt that was looked up, or taken over; blocks that were never either are the oldest, in the order of their numbers.
- Where two sequences computed the same block, the one that is given back first is forgotten when the second is.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

_ROOT = 0


def chains(ids: Sequence[int], block: int) -> Iterator[tuple[int, int]]:
    """The place behind each whole block, the very start first, and a hash of all before it."""
    chain = _ROOT
    yield 0, chain
    for end in range(block, len(ids) + 1, block):
        chain = hash((chain, *ids[end - block : end]))
        yield end, chain


class OutOfBlocks(Exception):
    """What the runtime does then is not mirrored: it takes blocks from running sequences."""


@dataclass(slots=True, eq=False)
class _Block:
    used: int
    """When it was last given to a prompt that was looked up, or taken over."""
    key: int = _ROOT
    holders: int = 0


@dataclass(slots=True)
class _Table:
    """One sequence: its ids, and the blocks that it holds."""

    ids: list[int]
    prompt_tokens: int
    size: int
    """Tokens in a block."""
    computed: int = 0
    blocks: list[_Block] = field(default_factory=list)
    chains: list[int] = field(default_factory=lambda: [_ROOT])

    def key(self, length: int) -> int:
        """A hash of the first ``length`` ids, by which the block that ends there is registered."""
        whole, rest = divmod(length, self.size)
        while len(self.chains) <= whole:
            end = len(self.chains) * self.size
            self.chains.append(hash((self.chains[-1], *self.ids[end - self.size : end])))
        return hash((self.chains[whole], *self.ids[whole * self.size : length])) if rest else self.chains[whole]


class CacheMirror:
    """Follows the ``capacity`` blocks of ``block`` tokens, step by step, with what the engine asks of the runtime.

    Between two steps ``add`` takes sequences in; ``step`` is what the runtime does before it computes, ``gained`` what
    it sampled, and ``remove`` what ended with that step, in the order in which they were added. ``known`` alone may be
    called from any thread.

    ``sure`` is False once it has met what it does not mirror; then its numbers are guesses, until ``clear``.
    """

    def __init__(self, block: int, capacity: int) -> None:
        self._block = block
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        """The cache was made anew."""
        self.sure = True
        self._clock = itertools.count(self._capacity)
        self._fresh = 0
        self._given_back: deque[_Block] = deque()
        self._registered: dict[int, _Block] = {}
        self._idle: dict[int, _Block] = {}
        """Blocks that nobody holds, by their key."""
        self._oldest: list[tuple[int, int]] = []
        """A heap of when each of them was used, and its key; entries of those that are held again are left in it."""
        self._tables: dict[int, _Table] = {}

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self._fresh - len(self._given_back) - len(self._idle)

    def known(self, ids: Sequence[int]) -> int:
        """How many tokens at the head of ``ids`` are cached, in whole blocks."""
        known = 0
        for end, chain in chains(ids, self._block):
            if end and not self._has(chain):
                break
            known = end
        return known

    def add(self, sequence: int, prompt: Sequence[int]) -> int:
        """Take ``sequence`` in; returns how many tokens of ``prompt`` need not be computed."""
        table = self._tables[sequence] = _Table(list(prompt), len(prompt), self._block)
        for end in self._ends(table):
            table.blocks.append(self._take(table.key(end)))
            table.computed = end
        table.computed = min(table.computed, len(prompt) - 1)
        return table.computed

    def found(self, prompt: Sequence[int]) -> int:
        """How many tokens ``add`` would find."""
        return max(self._ends(_Table(list(prompt), len(prompt), self._block)), default=0)

    def _ends(self, table: _Table) -> Iterator[int]:
        """Where the blocks end that are cached of a prompt, the last of them perhaps inside."""
        found = 0
        while found < table.prompt_tokens:
            whole = min(found + self._block, table.prompt_tokens)
            ends = itertools.chain([whole], range(found + 1, whole))
            end = next((end for end in ends if self._has(table.key(end))), None)
            if end is None:
                return
            yield end
            found = end
            if end < whole:
                return

    def step(self, cancelled: Iterable[int] = ()) -> None:
        """Hand out what the next step needs: first to who generates, then to who is read, each in order."""
        left_out = set(cancelled)
        tables = [table for number, table in self._tables.items() if number not in left_out]
        try:
            for table in self._tables.values():
                while len(table.blocks) > -(-table.computed // self._block):
                    self._give_back(table.blocks.pop())
            for table in tables:
                if table.computed >= table.prompt_tokens:
                    self._generate(table)
            for table in tables:
                if table.computed < table.prompt_tokens:
                    self._grow(table, table.prompt_tokens)
                    table.computed = table.prompt_tokens
        except OutOfBlocks:
            self.sure = False

    def gained(self, sequence: int, ids: Sequence[int]) -> None:
        """``sequence`` has sampled ``ids``."""
        if sequence in self._tables:
            self._tables[sequence].ids += ids

    def remove(self, sequences: Iterable[int]) -> None:
        """These have ended with the step that was."""
        ended = set(sequences)
        for number in [number for number in self._tables if number in ended]:
            for block in self._tables.pop(number).blocks:
                self._give_back(block)

    def _generate(self, table: _Table) -> None:
        length = table.computed + 1
        if length > len(table.blocks) * self._block:
            self._grow(table, length)
        elif (last := table.blocks[-1]).holders > 1:
            table.blocks[-1] = self._allocate(table.key(length))
            self._give_back(last)
        else:
            self._register(last, table.key(length))
        table.computed = length

    def _grow(self, table: _Table, length: int) -> None:
        """Blocks for ``length`` tokens. The last one is registered anew only where others come behind it."""
        if length <= len(table.blocks) * self._block:
            return
        if table.blocks and table.blocks[-1].key != (key := table.key(len(table.blocks) * self._block)):
            self._register(table.blocks[-1], key)
        while (end := len(table.blocks) * self._block) < length:
            table.blocks.append(self._allocate(table.key(min(end + self._block, length))))

    def _has(self, key: int) -> bool:
        return key in self._registered or key in self._idle

    def _take(self, key: int) -> _Block:
        block = self._idle.pop(key, None) or self._registered[key]
        block.used = next(self._clock)
        block.holders += 1
        return block

    def _register(self, block: _Block, key: int) -> None:
        self._registered.pop(block.key, None)
        block.key = key
        self._registered[key] = block

    def _allocate(self, key: int) -> _Block:
        if self._fresh < self._capacity:
            block = _Block(self._fresh)
            self._fresh += 1
        elif self._given_back:
            block = self._given_back.popleft()
        else:
            block = self._take_over()
            self._registered.pop(block.key, None)
        block.key, block.holders = key, 1
        self._registered[key] = block
        return block

    def _take_over(self) -> _Block:
        """The idle block that was not used for longest."""
        while self._oldest:
            used, key = heapq.heappop(self._oldest)
            block = self._idle.get(key)
            if block is not None and block.used == used:
                del self._idle[key]
                block.used = next(self._clock)
                return block
        raise OutOfBlocks

    def _give_back(self, block: _Block) -> None:
        block.holders -= 1
        if block.holders:
            return
        twin = self._idle.get(block.key)
        if twin is not None:
            self._given_back.append(twin)
            if self._registered.get(block.key) is twin:
                self._registered[block.key] = block
        self._idle[block.key] = block
        heapq.heappush(self._oldest, (block.used, block.key))
