"""A conversation as a chat socket keeps it: what was said, turn by turn, and nothing that was not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from causerie.types import ChatPrompt, Message


class Conversation:
    """Messages in order. A turn enters it when its answer has ended, with exactly the text that was delivered.

    Its size is bounded by the context window: turns that no longer fit are forgotten once the service has left
    them out (overflow "drop_oldest"), or the new turn is refused and so never enters ("error").
    """

    def __init__(self, *, overflow: Literal["error", "drop_oldest"] = "error", system: str | None = None) -> None:
        self._overflow: Literal["error", "drop_oldest"] = overflow
        self._messages: list[Message] = [] if system is None else [Message("system", system)]

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    def prompt_with(self, user_text: str) -> ChatPrompt:
        """The prompt for a new turn. The conversation itself does not change yet."""
        return ChatPrompt((*self._messages, Message("user", user_text)), self._overflow)

    def record(self, user_text: str, answer: str) -> None:
        """Add a turn that was answered, wholly or, when it was interrupted, with what had been delivered."""
        self._messages += [Message("user", user_text), Message("assistant", answer)]

    def forget(self, dropped: int) -> None:
        """Remove the oldest ``dropped`` messages after a leading system message (``Started.dropped_messages``)."""
        first = _head(self._messages)
        del self._messages[first : first + dropped]


def without_oldest_turn(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """``messages`` less their oldest turn: a user's message and all up to the next user's; None if only one is left.

    Messages with the system role at the head stay.
    """
    head = _head(messages)
    following = (index for index in range(head + 1, len(messages)) if messages[index].role == "user")
    start = next(following, None)
    return None if start is None else (*messages[:head], *messages[start:])


def _head(messages: Sequence[Message]) -> int:
    return next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
