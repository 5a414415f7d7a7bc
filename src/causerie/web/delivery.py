"""Responses on their way to the client of one socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from causerie.chat.archive import Stream
from causerie.chat.log import ResponseLog
from causerie.chat.records import ResponseRecord
from causerie.types import CancelCause
from causerie.wire.acknowledgement import Shown, acknowledge
from causerie.wire.responses_events import ResponseEvents


@dataclass(frozen=True, slots=True)
class Resumed:
    """A response that is being generated, or was, and how much of it the client has."""

    stream: Stream
    events: ResponseEvents
    position: int
    """Of the log's event that ``events`` go on behind."""


@dataclass(slots=True)
class Delivery:
    """A response on its way to the client."""

    record: ResponseRecord
    log: ResponseLog | None
    """None for one that another process generates."""
    stop: Callable[[CancelCause], object]
    sent: int = 0
    """The number of the log's last event that is sent."""

    def acknowledge(self, shown: Shown) -> None:
        """Raises what ``wire.acknowledgement.acknowledge`` raises."""
        acknowledge(shown, self.record, self.log, self.sent)
