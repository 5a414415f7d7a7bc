"""What is kept of responses and conversations, as values: no store, protocol or clock is known here.

Items are the truth of a conversation. Times are Unix times in seconds. An ``owner`` is the name of an API key
(``types.GenerationRequest.owner``); nobody is shown another owner's records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from causerie.errors import CauserieError, Interrupted
from causerie.types import Event, Failed, Finished, FinishReason, Started, TextDelta, Usage

ItemStatus = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class Item:
    """One message of a conversation. ``status`` is "incomplete" for an answer that did not come to its own end."""

    id: str
    role: str
    text: str
    status: ItemStatus = "completed"


class Status(StrEnum):
    """Where a response is. The values are the Responses API's."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    """It ended at a limit, or was steered away from its end."""
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self not in (Status.QUEUED, Status.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a response ended, and what counts as said: all of its text, or what an interrupted client had shown."""

    status: Status
    text: str
    usage: Usage
    ended: float
    reason: str | None = None
    """Why it is incomplete, in the Responses API's words."""
    error: CauserieError | None = field(default=None, compare=False)
    """Of a failed one."""

    def item(self, id_: str) -> Item | None:
        """The answer as an item under that id; None where nothing was said."""
        if not self.text:
            return None
        return Item(id_, "assistant", self.text, "completed" if self.status is Status.COMPLETED else "incomplete")


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """One response as it was asked for, and its end once that is known. Its events are kept beside it."""

    id: str
    owner: str
    created: float
    model: str
    parameters: Mapping[str, object]
    """What the request named, as the API echoes it: JSON values."""
    input: tuple[Item, ...]
    output_id: str
    """The id of the item that the answer becomes."""
    instructions: str | None = None
    previous: str | None = None
    """The response that this one continues."""
    conversation: str | None = None
    """The conversation that it belongs to. A response has a previous one or a conversation, or neither."""
    background: bool = False
    runner: str = ""
    """Which server process generates it."""
    outcome: Outcome | None = None
    expires: float | None = None
    """Seconds after its end for which it is kept, if it is not for good; told to ``Store.begin``, and not read back."""

    @property
    def output(self) -> Item | None:
        """The answer as an item; None while it is being generated, and where nothing was said."""
        return self.outcome.item(self.output_id) if self.outcome else None


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    id: str
    owner: str
    created: float
    metadata: Mapping[str, str] = field(default_factory=dict)


def text_of(events: Iterable[Event]) -> str:
    """All that a response with one choice has said."""
    return "".join(part.text for event in events if isinstance(event, TextDelta) for part in event.parts)


def outcome_of(events: Sequence[Event], ended: float) -> Outcome | None:
    """The end of a response with one choice, from its events; None if it has not ended."""
    last = events[-1] if events else None
    if isinstance(last, Failed):
        return Outcome(Status.FAILED, text_of(events)[: last.kept], last.usage, ended, error=last.error)
    if isinstance(last, Finished):
        status, reason = _ENDS[last.reasons[0]]
        return Outcome(status, text_of(events)[: last.kept], last.usage, ended, reason)
    return None


def interruption(events: Sequence[Event]) -> Failed:
    """The terminal event of a response whose process is gone: it used what it is known to have used.

    What its client is known to have shown is what came with the last text.
    """
    prompt = next((event.prompt_tokens for event in events if isinstance(event, Started)), 0)
    deltas = [event for event in events if isinstance(event, TextDelta)]
    said = sum(part.tokens for delta in deltas for part in delta.parts)
    return Failed(Interrupted(INTERRUPTED), Usage(prompt, said), deltas[-1].acknowledged if deltas else None)


INTERRUPTED = "The server ended while it generated this answer. What it had said is kept."

_ENDS = {
    FinishReason.STOP: (Status.COMPLETED, None),
    FinishReason.LENGTH: (Status.INCOMPLETE, "max_output_tokens"),
    FinishReason.CANCELLED: (Status.CANCELLED, None),
    FinishReason.STEERED: (Status.INCOMPLETE, "steered"),
}
