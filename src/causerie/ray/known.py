"""What an engine elsewhere has probably read, guessed from what it was given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from causerie.engines.openvino_cache import chains


class KnownPrefixes:
    """The latest ``capacity`` whole blocks of ``block`` tokens that were read."""

    def __init__(self, block: int, capacity: int) -> None:
        self._block = block
        self._capacity = capacity
        self._whole: OrderedDict[int, None] = OrderedDict()

    def known(self, ids: Sequence[int]) -> int:
        """How many tokens at the head of ``ids`` are among them, in whole blocks."""
        known = 0
        for end, chain in chains(ids, self._block):
            if end and chain not in self._whole:
                break
            known = end
        return known

    def read(self, ids: Sequence[int]) -> None:
        """These were read, from the first on."""
        for end, chain in chains(ids, self._block):
            if end:
                self._whole[chain] = None
                self._whole.move_to_end(chain)
        while len(self._whole) > self._capacity:
            self._whole.popitem(last=False)
