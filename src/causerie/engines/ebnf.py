"""Text in the grammars that xgrammar takes."""

from __future__ import annotations

import re

_MISREAD = re.compile(r"(?<=[\x00-\x1f\x7f-\xff])(?=[0-9a-fA-F])")
"""Where xgrammar writes a character as ``\\xdf`` for itself, and then reads what follows as a part of its number."""

_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - {'"', "\\"}


def literal(text: str) -> str:
    """A rule's part that is ``text`` and nothing else. There must be no NUL in it, where xgrammar ends it."""
    return " ".join(f'"{"".join(map(_spelled, part))}"' for part in _MISREAD.split(text))


def _spelled(character: str) -> str:
    return character if character in _PLAIN else f"\\U{ord(character):08x}"
