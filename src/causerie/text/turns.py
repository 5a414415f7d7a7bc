"""From turn to turn: what the model has seen of a conversation, and why its next prompt may not begin with that.

A conversation's next prompt is rendered anew. Its canonical encoding often differs from the ids that were generated,
since a model need not spell a text as the tokenizer would; then the prefix cache is of no use from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from causerie.text.tokenizer import ControlSpan, ControlTokenizer
from causerie.types import Message


class Miss(StrEnum):
    """Why what the model has seen was not the beginning of its next prompt."""

    TEMPLATE_REWROTE_HISTORY = "template_rewrote_history"
    """The messages are the same, but the template writes them otherwise, or no control token behind an answer."""
    INSTRUCTIONS_CHANGED = "instructions_changed"
    """The leading system or developer messages differ."""
    HISTORY_CHANGED = "history_changed"
    MODEL_CHANGED = "model_changed"
    """Another model, another form of its weights, another tokenizer or template."""
    EVICTED = "evicted"
    """The ids are the same, but what was computed of them is not kept any more. Never said by ``TextModel``."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the template writes it; empty without a template."""

    text: str
    own: tuple[ControlSpan, ...] | None = None
    """The control tokens that it has by right; None where these are all that it spells."""

    def spans(self, tokenizer: ControlTokenizer) -> tuple[ControlSpan, ...]:
        return tuple(tokenizer.spans(self.text)) if self.own is None else self.own


@dataclass(frozen=True, slots=True)
class ChatEncoding:
    """A conversation's ids, ready for the assistant's turn.

    ``miss`` says why they do not begin with what the model has seen, where they do not.
    """

    messages: tuple[Message, ...]
    rendered: Rendered
    ids: list[int]
    miss: Miss | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A conversation up to and with the assistant's last answer, and the ids by which the model knows it.

    ``ids`` spell ``text`` exactly, with the control tokens ``own`` where it has them. They end with the answer's text:
    what ends the turn is the template's to write.
    """

    fingerprint: str
    messages: tuple[Message, ...]
    text: str
    own: tuple[ControlSpan, ...]
    ids: tuple[int, ...]

    def rest(self, rendered: Rendered, tokenizer: ControlTokenizer) -> Rendered | None:
        """What ``rendered`` has behind this; None unless it is the same up to a control token behind it."""
        length = len(self.text)
        if not rendered.text.startswith(self.text):
            return None
        spans = rendered.spans(tokenizer)
        rest = tuple(ControlSpan(id_, start - length, end - length) for id_, start, end in spans[len(self.own) :])
        if spans[: len(self.own)] != self.own or not rest or rest[0].start != 0:
            return None
        return Rendered(rendered.text[length:], None if rendered.own is None else rest)

    def miss(self, fingerprint: str, messages: Sequence[Message], ids: Sequence[int]) -> Miss | None:
        """Why a prompt of these messages, with these ids of its own, does not begin with this, if it does not."""
        if fingerprint != self.fingerprint:
            return Miss.MODEL_CHANGED
        if _instructions(messages) != _instructions(self.messages):
            return Miss.INSTRUCTIONS_CHANGED
        if tuple(messages[: len(self.messages)]) != self.messages:
            return Miss.HISTORY_CHANGED
        if tuple(ids[: len(self.ids)]) == self.ids:
            return None
        return Miss.TEMPLATE_REWROTE_HISTORY


def agreeing(ids: Sequence[int], text: str, spell: Callable[[int], bytes]) -> tuple[int, str]:
    """How many of ``ids`` spell the beginning of ``text`` in whole characters, and the text that is left."""
    data = text.encode()
    at = place = 0
    agreed = (0, 0)
    for id_ in ids:
        piece = spell(id_)
        if at == len(data) or not piece or not data.startswith(piece, at):
            break
        at, place = at + len(piece), place + 1
        if at == len(data) or data[at] & 0xC0 != 0x80:
            agreed = place, at
    return agreed[0], data[agreed[1] :].decode()


def _instructions(messages: Sequence[Message]) -> list[Message]:
    return list(takewhile(lambda message: message.role in ("system", "developer"), messages))
