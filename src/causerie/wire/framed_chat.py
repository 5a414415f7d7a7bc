"""How a client asks for the framed form of the chat socket, and how it is greeted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from causerie.errors import InvalidRequest
from causerie.wire.fields import QueryFields
from causerie.wire.queries import MAX_ID_LENGTH


@dataclass(frozen=True, slots=True)
class FramedQuery:
    conversation: str | None
    """None for a new one."""
    response: str | None
    """One of its responses, to be told the rest of."""
    starting_after: int | None
    """The last of its sequence numbers that the client has; None for none."""
    interrupting: bool


def parse_framed(pairs: Iterable[tuple[str, str]]) -> FramedQuery:
    """The query of the socket's URL. Raises InvalidRequest or UnsupportedParameter."""
    fields = QueryFields(pairs)
    conversation = fields.text("conversation", MAX_ID_LENGTH)
    response = fields.text("response", MAX_ID_LENGTH)
    after = fields.integer("starting_after", 0, 2**31 - 1)
    on_turn = fields.take("on_turn")
    if on_turn not in (None, "interrupt", "queue"):
        fields.refuse("on_turn", "interrupt or queue", on_turn)
    fields.finish(("conversation", "response", "starting_after", "on_turn"))
    if response is not None and conversation is None:
        raise InvalidRequest("'response' needs the 'conversation' that it belongs to.", param="response")
    if after is not None and response is None:
        raise InvalidRequest("'starting_after' needs the 'response' that it is a number of.", param="starting_after")
    return FramedQuery(conversation, response, after, on_turn != "queue")


def greeting(conversation: str, interrupting: bool) -> str:
    """The socket's first frame."""
    session = {"conversation": {"id": conversation}, "on_turn": "interrupt" if interrupting else "queue"}
    return orjson.dumps({"type": "session.created", "session": session}).decode()
