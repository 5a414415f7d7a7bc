"""What a client says to have shown, or played, of an answer: what an interruption leaves of it.

Until the first time that it says so, an answer counts as said as far as it was sent.
"""

from __future__ import annotations

from typing import NamedTuple

from causerie.chat.log import Acknowledged
from causerie.errors import InvalidRequest, ResponseNotActive
from causerie.wire.fields import Fields, parse_object
from causerie.wire.responses_events import last_number, log_number

FIELDS = ("sequence_number", "text_end")
_HIGHEST = 2**53 - 1


class Shown(NamedTuple):
    """How far an answer was shown: ``number`` is the sequence number of an event, ``text_end`` counts characters.

    One of them is given.
    """

    number: int | None
    text_end: int | None


def take_shown(fields: Fields) -> Shown:
    """Raises InvalidRequest."""
    number = fields.integer("sequence_number", 0, _HIGHEST)
    text_end = fields.integer("text_end", 0, _HIGHEST)
    if number is None and text_end is None:
        raise InvalidRequest(
            "'sequence_number' is missing: the last event of which all was shown. Or give 'text_end', in characters.",
            param="sequence_number",
        )
    if number is not None and text_end is not None:
        raise InvalidRequest("Give 'sequence_number' or 'text_end', not both.", param="text_end")
    return Shown(number, text_end)


def parse_acknowledgement(body: bytes) -> Shown:
    """The body of a ``POST`` to ``/v1/responses/{id}/ack``. Raises InvalidRequest."""
    values = parse_object(body)
    Fields({name: value for name, value in values.items() if name not in FIELDS}).finish(FIELDS)
    return take_shown(Fields(values))


def text_shown(shown: Shown, answer: Acknowledged, sent: int) -> int:
    """The characters of the answer that were shown.

    ``sent`` is the number of the last of its events that the client can know. Raises ResponseNotActive after its end;
    InvalidRequest for what was not sent yet, and for less than was shown before.
    """
    if answer.ended:
        raise settled()
    text_end = _text_end(shown, answer, sent)
    if text_end < (answer.acknowledged or 0):
        raise InvalidRequest(
            f"These are {text_end} characters of the answer, but {answer.acknowledged} were acknowledged before.",
            param=_param(shown),
        )
    return text_end


def settled() -> ResponseNotActive:
    """What an acknowledgement comes to that is later than the end."""
    return ResponseNotActive("This response has ended: what is kept of it is settled.", param="response_id")


def _text_end(shown: Shown, answer: Acknowledged, sent: int) -> int:
    if shown.number is not None:
        last = last_number(sent, answer.event_at(sent)) if sent else 0
        if shown.number > last:
            raise InvalidRequest(
                f"'sequence_number' is {shown.number}, but the last event that was sent is number {last}.",
                param="sequence_number",
            )
        return answer.text_end(min(sent, log_number(shown.number)))
    assert shown.text_end is not None
    said = answer.text_end(sent)
    if shown.text_end > said:
        raise InvalidRequest(
            f"'text_end' is {shown.text_end}, but {said} characters of the answer were sent.", param="text_end"
        )
    return shown.text_end


def _param(shown: Shown) -> str:
    return "text_end" if shown.number is None else "sequence_number"
