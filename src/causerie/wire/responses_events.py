"""A response's log as the events of a Responses stream.

An event's ``sequence_number`` follows from the log alone, never from the connection: whoever reads the same log again,
from wherever, gets the same numbers. They rise strictly, with gaps.

==================================  =========================================================================
``response.created``                0
before the ``Started``, number s    the log's number: ``response.queued`` for each ``Queued``,
                                    ``response.in_progress`` for the first ``PrefillProgress``, or for s itself
with the first text after it        ``response.output_item.added`` s + 1, ``response.content_part.added`` s + 2
each text                           the log's number + 2: ``response.output_text.delta``
the log's end, number t             if there was text ``response.output_text.done`` t + 2,
                                    ``response.content_part.done`` t + 3, ``response.output_item.done`` t + 4;
                                    always the terminal event, t + 5
==================================  =========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import orjson

from causerie.chat.log import Numbered
from causerie.chat.records import Item, ItemStatus, ResponseRecord, Status, outcome_of
from causerie.errors import CauserieError, InvalidRequest
from causerie.text.turns import agreeing
from causerie.types import (
    Event,
    Failed,
    Finished,
    Part,
    PrefillProgress,
    Queued,
    Started,
    TextDelta,
    TokenLogprob,
)
from causerie.wire import sse
from causerie.wire.items import item_object, text_part
from causerie.wire.logprobs import TokenNames, token_logprobs
from causerie.wire.openai import progress_comment
from causerie.wire.responses_object import response_object

_TERMINALS = {
    Status.COMPLETED: "response.completed",
    Status.INCOMPLETE: "response.incomplete",
    # The API's streams have no event for it; the response inside says "cancelled".
    Status.CANCELLED: "response.incomplete",
    Status.FAILED: "response.failed",
}
_DELTA = "response.output_text.delta"


class StreamEvent(NamedTuple):
    number: int
    """The event's ``sequence_number``."""
    type: str
    data: bytes
    """All of the event as JSON that may stand in a ``data:`` line."""


class ResponseEvents:
    """Encodes one reader's view of one response.

    A reader from the beginning sends ``opening()`` and then ``encode`` or ``sse`` of every event that its cursor gives;
    deltas may be merged as ``Reader`` does it. One that comes back calls ``resume`` first. ``ended`` tells when the
    response ended, in Unix time; it is asked at the log's end, and must always say the same.
    """

    def __init__(
        self, record: ResponseRecord, *, ended: Callable[[], float], logprobs: TokenNames | None = None
    ) -> None:
        self._record = replace(record, outcome=None)
        self._ended = ended
        self._names = logprobs
        self._after = -1
        self._in_progress = False
        self._start = 0
        self._begun = False
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._place = {"item_id": record.output_id, "output_index": 0, "content_index": 0}
        members = orjson.dumps({"type": _DELTA, **self._place})
        self._delta = sse.one_line(members[:-1]) + b',"sequence_number":'
        self._delta_line = b"event: " + _DELTA.encode() + b"\ndata: " + self._delta

    def resume(self, history: Sequence[Event], after: int) -> int:
        """Go on behind sequence number ``after``; returns the number of the log's event to go on behind.

        ``history`` is the log so far, unmerged. What the client has of it is taken in; what comes above ``after`` is
        left to ``opening`` and to the events behind the returned number. Raises InvalidRequest for a number that has
        not been given yet.
        """
        last = last_number(len(history), history[-1]) if history else 0
        if after > last:
            raise InvalidRequest(
                f"'starting_after' is {after}, but this response's last event so far is number {last}.",
                param="starting_after",
            )
        self._after = after
        position = 0
        for number, event in enumerate(history, 1):
            if last_number(number, event) > after:
                break
            position = number
            self._take(number, event)
        return position

    def opening(self) -> list[StreamEvent]:
        """``response.created``, where it has not been seen."""
        if self._after >= 0:
            return []
        self._after = 0
        status = Status.QUEUED if self._record.background else Status.IN_PROGRESS
        return [self._lifecycle(0, "response.created", status)]

    @property
    def number(self) -> int:
        """The ``sequence_number`` of the last event so far; from the opening on."""
        return self._after

    def encode(self, numbered: Numbered) -> list[StreamEvent]:
        """The events that one of the log's makes: none, one or several."""
        number, event = numbered
        if isinstance(event, TextDelta) and self._names is None:
            added = self._added_with(event)
            data = self._plain_delta(self._delta, number + 2, event, b',"logprobs":[]}')
            return [*added, StreamEvent(number + 2, _DELTA, data)] if data else []
        self._take_text(event)
        events = [made for made in self._encode(number, event) if made.number > self._after]
        self._take_state(number, event)
        if events:
            self._after = events[-1].number
        return events

    def sse(self, numbered: Numbered) -> bytes:
        """The same as server-sent events; a prompt that is being read is told in comments."""
        number, event = numbered
        if isinstance(event, TextDelta) and self._names is None:
            added = as_sse(self._added_with(event))
            return added + self._plain_delta(self._delta_line, number + 2, event, b',"logprobs":[]}\n\n')
        body = as_sse(self.encode(numbered))
        if isinstance(event, PrefillProgress):
            body += progress_comment(event)
        return body

    def _plain_delta(self, head: bytes, number: int, event: TextDelta, tail: bytes) -> bytes:
        """A delta without log-probabilities: there are many, and all but the text is known."""
        text = event.parts[0].text
        if not text:
            return b""
        self._text.append(text)
        self._after = number
        return head + b'%d,"delta":' % number + sse.json_text(text) + tail

    def _says(self, delta: TextDelta) -> bool:
        part = delta.parts[0]
        return bool(part.text or (self._names is not None and part.logprobs))

    def _take(self, number: int, event: Event) -> None:
        self._take_text(event)
        self._take_state(number, event)

    def _take_text(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            part = event.parts[0]
            self._text.append(part.text)
            if self._names is not None:
                self._logprobs += part.logprobs

    def _take_state(self, number: int, event: Event) -> None:
        match event:
            case PrefillProgress():
                self._in_progress = True
            case Started():
                self._in_progress, self._start = True, number
            case TextDelta():
                self._begun = self._begun or self._says(event)

    def _encode(self, number: int, event: Event) -> Iterator[StreamEvent]:
        match event:
            case TextDelta():
                yield from self._rich_delta(number + 2, event)
            case Queued(position, wait):
                place = {"queue_position": position, "estimated_wait": wait}
                yield self._lifecycle(number, "response.queued", Status.QUEUED, place)
            case PrefillProgress():
                if not self._in_progress:
                    yield self._lifecycle(number, "response.in_progress", Status.IN_PROGRESS)
            case Started():
                if not self._in_progress:
                    yield self._lifecycle(number, "response.in_progress", Status.IN_PROGRESS)
            case Finished() | Failed():
                yield from self._end(number, event)

    def _rich_delta(self, number: int, event: TextDelta) -> Iterator[StreamEvent]:
        part = event.parts[0]
        if self._names is not None and self._says(event):
            yield from self._added()
            logprobs = sse.one_line(orjson.dumps(token_logprobs(self._names, part.logprobs)))
            values = (number, sse.json_text(part.text), logprobs)
            yield StreamEvent(number, _DELTA, self._delta + b'%d,"delta":%b,"logprobs":%b}' % values)

    def _added_with(self, delta: TextDelta) -> list[StreamEvent]:
        """What comes before the first text."""
        if self._begun or not self._says(delta):
            return []
        added = [made for made in self._added() if made.number > self._after]
        self._begun = True
        return added

    def _added(self) -> Iterator[StreamEvent]:
        if not self._begun:
            item = item_object(Item(self._record.output_id, "assistant", "", "in_progress")) | {"content": []}
            yield _event(self._start + 1, "response.output_item.added", {"output_index": 0, "item": item})
            yield _event(self._start + 2, "response.content_part.added", self._place | {"part": text_part("")})

    def _end(self, number: int, event: Finished | Failed) -> Iterator[StreamEvent]:
        outcome = outcome_of((TextDelta((Part(0, "".join(self._text), 0),)), event), self._ended())
        assert outcome is not None  # The event is a log's last.
        text = outcome.text
        logprobs = self._logprobs_of(text, all_of_it=event.kept is None)
        if self._begun:
            status: ItemStatus = "completed" if outcome.status is Status.COMPLETED else "incomplete"
            item = item_object(Item(self._record.output_id, "assistant", text, status), logprobs)
            said = {"text": text, "logprobs": logprobs}
            yield _event(number + 2, "response.output_text.done", self._place | said)
            yield _event(number + 3, "response.content_part.done", self._place | {"part": text_part(text, logprobs)})
            yield _event(number + 4, "response.output_item.done", {"output_index": 0, "item": item})
        response = response_object(replace(self._record, outcome=outcome), logprobs=logprobs)
        yield _event(number + 5, _TERMINALS[outcome.status], {"response": response})

    def _logprobs_of(self, text: str, *, all_of_it: bool) -> list[dict[str, object]]:
        if self._names is None:
            return []
        tokens = self._logprobs
        if not all_of_it:
            tokens = tokens[: agreeing([token.id for token in tokens], text, self._names.token_bytes)[0]]
        return token_logprobs(self._names, tokens)

    def _lifecycle(
        self, number: int, type_: str, status: Status, more: Mapping[str, object] | None = None
    ) -> StreamEvent:
        return _event(number, type_, {"response": response_object(self._record, status), **(more or {})})


def error_event(error: CauserieError, number: int) -> StreamEvent:
    """The end of a stream that broke off for a reason of its own, while nothing is known of the response's end.

    It is no part of the log: ``number`` is that of the event before it, so that whoever comes back with it misses
    nothing. On a socket the API has another form of it (``ResponseSocket.broken``).
    """
    return _event(number, "error", {"code": error.code, "message": error.message, "param": error.param})


def as_sse(events: Iterable[StreamEvent]) -> bytes:
    """Server-sent events, named, as the API sends them."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (event.type.encode(), event.data) for event in events)


def _event(number: int, type_: str, members: dict[str, object]) -> StreamEvent:
    body = {"type": type_, "sequence_number": number, **members}
    return StreamEvent(number, type_, sse.one_line(orjson.dumps(body)))


def log_number(number: int) -> int:
    """The log's number of the last text that a client can have who has the event of this sequence number."""
    return max(0, number - 2)


def last_number(number: int, event: Event) -> int:
    """The highest sequence number that the log's event ``number`` can have."""
    match event:
        case Started() | TextDelta():
            return number + 2
        case Finished() | Failed():
            return number + 5
        case _:
            return number
