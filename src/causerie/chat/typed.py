"""How much text is being typed, by whom: each owner has a limit, over all connections."""

from __future__ import annotations

from causerie.errors import TypedTextLimit


class TypedText:
    """Counts the characters that are held and not committed yet. Runs on the event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[str, int] = {}

    def share(self, owner: str) -> Share:
        """A new part of what ``owner`` may hold; nothing yet."""
        return Share(self, owner)

    def held(self, owner: str) -> int:
        return self._held.get(owner, 0)

    def _add(self, owner: str, characters: int) -> None:
        held = self.held(owner) + characters
        if characters > 0 and held > self._limit:
            raise TypedTextLimit(
                f"With this, {held} characters would be typed and not committed yet under this key, on all its "
                f"connections; this server takes {self._limit}. Commit or clear some of it, or try again later."
            )
        self._held[owner] = held
        if not held:
            del self._held[owner]


class Share:
    """What one text holds of its owner's characters. Made by ``TypedText.share``; resize it to 0 at the end."""

    def __init__(self, typed: TypedText, owner: str) -> None:
        self._typed = typed
        self._owner = owner
        self._characters = 0

    def resize(self, characters: int) -> None:
        """Raises TypedTextLimit where there is no room to grow, and then changes nothing."""
        self._typed._add(self._owner, characters - self._characters)
        self._characters = characters
