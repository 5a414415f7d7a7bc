"""What a socket remembers of responses that are not stored, so that they can be continued on it."""

from __future__ import annotations

from collections.abc import Sequence

from causerie.chat.records import Item

MAX_ANSWERS = 16
MAX_CHARACTERS = 4 * 2**20
"""Of all that is kept; what several have in common counts for each, and an item for ``ITEM`` more than its text."""
ITEM = 256


class KeptAnswers:
    """The latest few, by their ids, with all that they continue. The oldest go first."""

    def __init__(self) -> None:
        self._answers: dict[str, Sequence[Item]] = {}
        self._characters = 0

    def add(self, id_: str, items: Sequence[Item]) -> None:
        """``items``: what it continued, what it was asked, and what it said."""
        self._answers[id_] = items
        self._characters += _characters(items)
        while self._answers and (len(self._answers) > MAX_ANSWERS or self._characters > MAX_CHARACTERS):
            self._characters -= _characters(self._answers.pop(next(iter(self._answers))))

    def items(self, id_: str) -> Sequence[Item] | None:
        return self._answers.get(id_)


def _characters(items: Sequence[Item]) -> int:
    return sum(len(item.text) + ITEM for item in items)
