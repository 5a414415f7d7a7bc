"""Responses on their way to the client of one socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from causerie.chat.archive import Stream
from causerie.chat.log import Acknowledged
from causerie.chat.records import ResponseRecord
from causerie.types import CancelCause
from causerie.wire.acknowledgement import Shown, settled, text_shown
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
    answer: Acknowledged
    stop: Callable[[CancelCause], object]
    sent: int = 0
    """The number of the log's last event that is sent."""

    async def acknowledge(self, shown: Shown) -> None:
        """Raises what ``acknowledge`` raises."""
        await acknowledge(shown, self.answer, self.sent)


async def acknowledge(shown: Shown, answer: Acknowledged, sent: int) -> int:
    """Take in what a client has shown; returns it in characters. See ``text_shown``; also raises StoreError."""
    text_end = text_shown(shown, answer, sent)
    if not await answer.acknowledge(text_end):
        raise settled()
    return text_end
