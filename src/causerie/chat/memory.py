"""What the model has seen of conversations, by the responses that they came to: a derived cache, and bounded.

Losing an entry costs time, never a word: the next turn's prompt is then encoded anew.
"""

from __future__ import annotations

from collections import OrderedDict

from causerie.text.turns import Seen

MAX_TOKENS = 4_000_000
"""Of all entries together: some 32 MB of ids, and their text."""


class Memory:
    """The least recently used goes first. Runs on the event loop."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._tokens = 0
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def keep(self, id_: str, seen: Seen) -> None:
        self.forget(id_)
        self._seen[id_] = seen
        self._tokens += len(seen.ids)
        while self._tokens > self._max_tokens:
            self.forget(next(iter(self._seen)))

    def find(self, id_: str | None) -> Seen | None:
        """What the model had seen when the response, or conversation, of this id had ended."""
        if id_ is None or id_ not in self._seen:
            return None
        self._seen.move_to_end(id_)
        return self._seen[id_]

    def forget(self, id_: str) -> None:
        """Its record is deleted, or there is something newer."""
        gone = self._seen.pop(id_, None)
        if gone is not None:
            self._tokens -= len(gone.ids)
