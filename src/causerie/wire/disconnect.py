"""What is to become of a response whose client is gone, and where a client that comes back wants to go on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from causerie.errors import InvalidRequest
from causerie.types import OnDisconnect
from causerie.wire.fields import Fields, QueryFields, query_pairs, shown

MAX_GRACE = 3600.0
"""Seconds that a client may ask a response to wait for it."""

_GRACE = re.compile(r"grace\((\d{1,6}(?:\.\d{1,3})?)\)", re.ASCII)
_PLACE = re.compile(r"(\d{1,9})(?:\.(\d{1,4}))?", re.ASCII)


def parse_on_disconnect(value: object, param: str = "on_disconnect") -> OnDisconnect:
    """``cancel``, ``continue`` or ``grace(SECONDS)``. Raises InvalidRequest."""
    if value == "cancel":
        return OnDisconnect()
    if value == "continue":
        return OnDisconnect(None)
    match = _GRACE.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) > MAX_GRACE:
        raise InvalidRequest(
            f"'{param}' must be cancel, continue or grace(SECONDS) with at most {MAX_GRACE:g} seconds, "
            f"not {shown(value)}.",
            param=param,
        )
    return OnDisconnect(float(match[1]))


def take_on_disconnect(fields: Fields) -> OnDisconnect | None:
    """The field of that name, None where it is not given."""
    value = fields.take("on_disconnect")
    return None if value is None else parse_on_disconnect(value)


def check_in_background(wanted: OnDisconnect, param: str = "on_disconnect") -> None:
    """Refuse any end with its client for a response in the background, which has none. Raises InvalidRequest."""
    if wanted.grace is not None:
        raise InvalidRequest(
            f"A response with 'background': true goes on without a client; '{param}' can only be continue. Cancel it "
            "by its id instead.",
            param=param,
        )


class Place(NamedTuple):
    """A place in a stream: behind the whole event ``number``, or behind the first ``pieces`` of the one after it."""

    number: int = 0
    pieces: int = 0

    def __str__(self) -> str:
        return f"{self.number + 1}.{self.pieces}" if self.pieces else str(self.number)


START = Place()


def parse_place(text: str, param: str) -> Place:
    """``12``, or ``13.1`` where one event was sent in pieces. Raises InvalidRequest."""
    match = _PLACE.fullmatch(text)
    if match is None or (match[2] and int(match[1]) < 1):
        raise InvalidRequest(f"'{param}' must be the number of an event, not {shown(text)}.", param=param)
    number, pieces = int(match[1]), int(match[2] or 0)
    return Place(number - 1, pieces) if pieces else Place(number)


def parse_event_id(value: str) -> tuple[str, Place]:
    """``Last-Event-ID``: a stream's id and a place in it, as the server's ``id:`` lines have them."""
    id_, separator, place = value.rpartition(":")
    if not separator or not id_:
        raise InvalidRequest(
            f"'Last-Event-ID' must be the id of an event of this server, not {shown(value)}.", param="Last-Event-ID"
        )
    return id_, parse_place(place, "Last-Event-ID")


@dataclass(frozen=True, slots=True)
class Again:
    """How a stream is to be read again."""

    place: Place
    stream: bool
    include_usage: bool


def parse_again(query: bytes) -> Again:
    """``?stream=true&starting_after=N&include_usage=true``. Raises InvalidRequest."""
    fields = QueryFields(query_pairs(query))
    after = fields.take("starting_after")
    again = Again(
        START if after is None else parse_place(str(after), "starting_after"),
        fields.boolean("stream"),
        fields.boolean("include_usage"),
    )
    if after is not None and not again.stream:
        raise InvalidRequest("'starting_after' needs 'stream=true'.", param="starting_after")
    fields.finish(("starting_after", "stream", "include_usage"))
    return again


def parse_place_query(query: bytes) -> Place:
    """``?starting_after=N`` and nothing else. Raises InvalidRequest."""
    fields = QueryFields(query_pairs(query))
    after = fields.take("starting_after")
    fields.finish(("starting_after",))
    return START if after is None else parse_place(str(after), "starting_after")
