"""A lane of a Responses socket: its states, and what is to be done when they change."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from causerie.chat.records import Item
from causerie.types import CancelCause
from causerie.wire.acknowledgement import Shown
from causerie.wire.responses_request import ResponseCall
from causerie.wire.socket_events import Append, Clear, Commit, Steer, Truncate


class State(Enum):
    IDLE = "idle"
    CREATING = "creating"
    RUNNING = "running"
    STEERED = "steered"
    """It is being ended, and a successor goes on."""


_NEXT = {
    ("begin", State.IDLE): State.CREATING,
    ("created", State.CREATING): State.RUNNING,
    ("refused", State.CREATING): State.IDLE,
    ("steer", State.RUNNING): State.STEERED,
    ("steer", State.STEERED): State.STEERED,
    ("cancel", State.STEERED): State.RUNNING,
    ("ended", State.RUNNING): State.IDLE,
    ("ended", State.STEERED): State.IDLE,
}


@dataclass(frozen=True, slots=True)
class Send:
    """Send this text frame."""

    text: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Create a response; then tell ``created`` or ``refused``. ``history`` is what only this socket knows."""

    lane: str | None
    call: ResponseCall
    history: Sequence[Item] | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End the lane's response; it is not ``ended`` before its terminal event was sent."""

    lane: str | None
    cause: CancelCause


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The client has shown so much of the lane's response."""

    lane: str | None
    shown: Shown


@dataclass(frozen=True, slots=True)
class Open:
    """Open an input buffer for the message that ``call`` is to end with."""

    call: ResponseCall
    history: Sequence[Item] | None = None


Action: TypeAlias = Send | Begin | Stop | Acknowledge | Open | Append | Truncate | Clear | Commit


@dataclass(slots=True)
class Lane:
    name: str | None
    state: State = State.IDLE
    waiting: deque[ResponseCall] = field(default_factory=deque)
    call: ResponseCall | None = None
    response: str | None = None
    number: int = 0
    """The sequence number that was sent last."""
    steers: list[tuple[str, Steer]] = field(default_factory=list)
    """With their ids: what is to go on when the response has ended, or goes on now but is not committed yet."""
    stopped: bool = False

    def move(self, verb: str) -> None:
        """Raises RuntimeError for what cannot happen now."""
        state = _NEXT.get((verb, self.state))
        if state is None:
            raise RuntimeError(f"{verb} while {self.state.value}")
        self.state = state
