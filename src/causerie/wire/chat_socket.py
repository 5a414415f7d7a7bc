"""The plain chat socket: text frames in are turns, text frames out are the answer, then the sentinel.

A machine without I/O. Feed it what the client sent (``receive``), ask for work (``next_turn``), turn the answer's
text into frames (``frames``) and end it (``end_turn``). A turn that fails is not ended: the socket is closed with
a code and a reason instead, and no sentinel is sent.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from causerie.errors import Overloaded

SENTINEL = "<<Response Finished>>"
MAX_PENDING_TURNS = 16
"""Turns that may wait while one is answered."""
MAX_REASON_BYTES = 123
"""What a close frame holds beside its code (RFC 6455, 5.5)."""

_SPLIT = SENTINEL.index(" ") + 1


class State(Enum):
    IDLE = "idle"
    ANSWERING = "answering"


_NEXT = {("next_turn", State.IDLE): State.ANSWERING, ("end_turn", State.ANSWERING): State.IDLE}


class ChatSocket:
    """One client's call, from accept to close. Turns are answered one at a time, in the order they came."""

    def __init__(self) -> None:
        self._state = State.IDLE
        self._pending: deque[str] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered and nothing waits."""
        return self._state is State.IDLE and not self._pending

    def receive(self, text: str) -> None:
        """The client's next turn; an empty one is a turn like any other. Raises Overloaded past the bound."""
        if len(self._pending) >= MAX_PENDING_TURNS:
            raise Overloaded(f"More than {MAX_PENDING_TURNS} turns are waiting for their answers on this socket.")
        self._pending.append(text)

    def next_turn(self) -> str | None:
        """The turn to answer now, or None if none waits. Only between turns."""
        if not self._pending:
            return None
        self._move("next_turn")
        return self._pending.popleft()

    def frames(self, text: str) -> tuple[str, ...]:
        """The text frames that carry a piece of the answer; never one that equals the sentinel."""
        if text == SENTINEL:
            return text[:_SPLIT], text[_SPLIT:]
        return (text,) if text else ()

    def end_turn(self) -> str:
        """The frame that says the answer is complete."""
        self._move("end_turn")
        return SENTINEL

    def _move(self, verb: str) -> None:
        state = _NEXT.get((verb, self._state))
        if state is None:
            raise RuntimeError(f"{verb} while {self._state.value}")
        self._state = state


def close_reason(message: str) -> str:
    """As much of ``message`` as a close frame holds, cut between characters."""
    encoded = message.encode("utf-8")
    if len(encoded) <= MAX_REASON_BYTES:
        return message
    return encoded[: MAX_REASON_BYTES - 3].decode("utf-8", "ignore") + "…"
