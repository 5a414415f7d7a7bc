"""Stop strings in a text that comes in pieces."""

from __future__ import annotations


class StopMatcher:
    """Lets text through up to the first stop string, and never a part of one.

    The text that comes out, joined, is what stands before the leftmost occurrence of any of ``stops`` in all
    that was fed. Text that may be the start of one is held back until that is decided. Where one stop string
    lies inside what may become an earlier one, the decision waits for that too, so ``matched`` may first be
    set by ``flush``.

    The work is in proportion to the text and the number of stops, not to their lengths.
    """

    __slots__ = ("_borders", "_depths", "_firsts", "_found", "_held", "_stops", "matched")

    def __init__(self, stops: tuple[str, ...]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self.matched: str | None = None
        """The stop string that ended the text."""
        self._stops = stops
        self._firsts = frozenset(stop[0] for stop in stops)
        self._borders = [_borders(stop) for stop in stops]
        self._depths = [0] * len(stops)
        """For each stop string, the length of its longest start with which the text so far ends."""
        self._held = ""
        self._found: tuple[int, str] | None = None
        """A match, by its place in ``_held``, that an earlier one may still overrule."""

    def feed(self, text: str) -> str:
        """Take more text; returns what is safe to send now. After a match, always ``""``."""
        if self.matched is not None:
            return ""
        if not self._held and self._firsts.isdisjoint(text):
            return text
        start = len(self._held)
        self._held += text
        for place, character in enumerate(text, start + 1):
            self._step(place, character)
            if self._found is not None and self._earliest(place) >= self._found[0]:
                return self._finish(self._found)
        keep = self._earliest(len(self._held))
        if self._found is not None:
            self._found = (self._found[0] - keep, self._found[1])
        safe, self._held = self._held[:keep], self._held[keep:]
        return safe

    def flush(self) -> str:
        """The text has ended: what was held back and is no part of a stop string."""
        if self._found is not None:
            return self._finish(self._found)
        rest, self._held = self._held, ""
        self._depths = [0] * len(self._stops)
        return rest

    def _step(self, place: int, character: str) -> None:
        """Follow each stop string by one character (Knuth, Morris and Pratt), noting the leftmost that is whole."""
        for number, stop in enumerate(self._stops):
            borders = self._borders[number]
            depth = self._depths[number]
            while depth and stop[depth] != character:
                depth = borders[depth]
            if stop[depth] == character:
                depth += 1
            if depth == len(stop):
                begin = place - depth
                if self._found is None or begin < self._found[0]:
                    self._found = (begin, stop)
                depth = borders[depth]
            self._depths[number] = depth

    def _earliest(self, place: int) -> int:
        """Where the earliest stop string begins that may yet become whole; ``place`` if there is none."""
        return place - max(self._depths)

    def _finish(self, found: tuple[int, str]) -> str:
        before = self._held[: found[0]]
        self.matched, self._held, self._found = found[1], "", None
        return before


def _borders(stop: str) -> list[int]:
    """For each length of a start of ``stop``, the length of the longest shorter start with which it ends."""
    borders = [0, 0]
    for character in stop[1:]:
        depth = borders[-1]
        while depth and stop[depth] != character:
            depth = borders[depth]
        borders.append(depth + 1 if stop[depth] == character else 0)
    return borders
