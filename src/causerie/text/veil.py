"""Keeps what users wrote from spelling a control token, whatever the chat template writes around it."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace

from causerie.errors import InvalidRequest
from causerie.text.tokenizer import ControlTokenizer
from causerie.types import Message

KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Roles that a template may make control tokens of, as in ``<|user|>``. Any other role is a user's text."""

_STAND_INS = range(0x20000, 0x2A6E0)
"""Ideographs of an extension that is hardly ever written: letters, so that no filter or normalizer touches them."""
_TRIES = 64
_MARGIN = string.whitespace + "\u2581"


class Veil:
    """Stand-ins for the characters without which no control token can be spelled.

    A control token needs its first and its last character, and a text that stands within one needs all of its
    own. Under the veil, users' texts have none of these: so every control token that is found in a rendered
    conversation is the template's own, and stands at the same place when the veil is lifted.
    """

    def __init__(self, characters: frozenset[str], conversation: Sequence[Message]) -> None:
        self._stand_ins: dict[str, str] = {}
        texts = [text for message in conversation for text in _texts(message)]
        for character in sorted(characters):
            self._stand_ins[character] = unused_letter([*texts, *self._stand_ins.values()])

    def cover(self, messages: Sequence[Message]) -> list[Message]:
        return [
            replace(
                message,
                role=message.role if message.role in KNOWN_ROLES else self._cover(message.role),
                content=self._cover(message.content),
                name=None if message.name is None else self._cover(message.name),
            )
            for message in messages
        ]

    def lift(self, text: str) -> str:
        for character, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, character)
        return text

    def _cover(self, text: str) -> str:
        # One pass of str.translate would hold up every other thread for as long as it takes.
        for character, stand_in in self._stand_ins.items():
            text = text.replace(character, stand_in)
        return text


def unused_letter(texts: Sequence[str]) -> str:
    """A letter that is in none of ``texts``. Raises InvalidRequest where none is found."""
    for _ in range(_TRIES):
        candidate = chr(random.SystemRandom().choice(_STAND_INS))
        if not any(candidate in text for text in texts):
            return candidate
    raise InvalidRequest(
        "The messages use too many rare characters to be kept apart from the model's control tokens.",
        param="messages",
    )


class Guard:
    """Decides which conversations need a veil for one model's control tokens."""

    def __init__(self, tokenizer: ControlTokenizer) -> None:
        spellings = {_core(text) for text in tokenizer.controls}
        spellings |= {_core(tokenizer.normalize(text)) for text in spellings}
        self._tokenizer = tokenizer
        self._ends = frozenset(text[place] for text in spellings - {""} for place in (0, -1))
        self._inside = "\n".join(sorted(spellings))

    def veil(self, messages: Sequence[Message]) -> Veil | None:
        """A veil for these messages; None if no part of them can be part of a control token."""
        characters: set[str] = set()
        for message in messages:
            for text in _texts(message):
                characters |= self._suspects(_core(text))
        return Veil(frozenset(characters), messages) if characters else None

    def _suspects(self, text: str) -> set[str]:
        suspects = {character for character in self._ends if character in text}
        normalized = self._tokenizer.normalize(text)
        if text in self._inside or _core(normalized) in self._inside:
            suspects |= set(text)
        if normalized != text:
            changed = {character: self._tokenizer.normalize(character) for character in set(text)}
            suspects |= {character for character, to in changed.items() if not self._ends.isdisjoint(to)}
        return {character for character in suspects if not character.isspace()}


def _core(text: str) -> str:
    """A text without the spaces around it, which templates may trim and normalizers write as ``▁``."""
    return text.strip(_MARGIN)


def _texts(message: Message) -> Iterator[str]:
    """The parts of a message that are a user's to choose."""
    yield message.content
    if message.role not in KNOWN_ROLES:
        yield message.role
    if message.name is not None:
        yield message.name
