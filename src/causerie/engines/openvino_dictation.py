"""Making OpenVINO GenAI's runtime read given tokens one a step, as if it generated them.

The runtime reads a prompt's new tokens in one step, and two or more of them cost a passage over all that stands before
them: behind 4,000 tokens, whoever is being answered meanwhile waits 60 ms longer for the next word. A token that is
generated costs 10 (``docs/log.md``). So a sequence is held to the tokens that are to be read, with what the runtime
has: a grammar says what text comes, and every other token that could spell a part of it is a stop id, none of which the
runtime chooses before ``min_new_tokens``. No choice is left to the model.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from causerie.engines.ebnf import literal


class Dictated(NamedTuple):
    """Tokens that one request can be held to."""

    tokens: int
    grammar: str
    """Their text, in xgrammar's EBNF."""
    others: frozenset[int]
    """Tokens that could be chosen in their stead."""


class Dictation:
    """For a vocabulary: what each token spells, nothing where it is a control token."""

    def __init__(self, vocabulary: Sequence[bytes]) -> None:
        self._vocabulary = vocabulary
        self._longest = max(map(len, vocabulary), default=0)
        self._tokens: dict[bytes, list[int]] = {}
        for token, spelled in enumerate(vocabulary):
            self._tokens.setdefault(spelled, []).append(token)

    def begin(self, ids: Sequence[int]) -> Dictated | None:
        """As many of the first of ``ids`` as one request can be held to; None where that is not even one.

        They end before one that could stand for an earlier one, or the other way round. A grammar has whole characters
        only: they begin where one begins, and end where one ends.
        """
        spelled = list(takewhile(_can_be_spelled, (self._vocabulary[token] for token in ids)))
        text = b"".join(spelled)
        characters = codecs.getincrementaldecoder("utf-8")()
        others: set[int] = set()
        wanted: set[int] = set()
        read, at, count, whole = "", 0, 0, ""
        for number, (token, part) in enumerate(zip(ids, spelled, strict=False), start=1):
            rivals = {other for other in self._beginning(text, at) if other != token}
            if token in others or not rivals.isdisjoint(wanted):
                break
            try:
                read += characters.decode(part)
            except UnicodeDecodeError:
                break
            others |= rivals
            wanted.add(token)
            at += len(part)
            if not characters.getstate()[0]:
                count, whole = number, read
        return Dictated(count, f"root ::= {literal(whole)}", frozenset(others)) if count else None

    def _beginning(self, text: bytes, at: int) -> Iterator[int]:
        """All tokens that ``text`` goes on with from there."""
        for end in range(at + 1, min(at + self._longest, len(text)) + 1):
            yield from self._tokens.get(text[at:end], ())


def _can_be_spelled(token: bytes) -> bool:
    return token != b"" and 0 not in token
