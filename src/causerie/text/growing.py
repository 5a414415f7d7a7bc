"""Where a text that is still being written may be cut, so that what stands before stays as it is.

Tokenizers first split a text into words, and a word's ids depend on nothing outside it. So the ids up to the end of a
word that another character has ended already are the same however the text goes on. That holds for tokenizers that
split by a pattern, as those of GPT-2, Llama 3, Qwen and SmolLM2 do; ``is_separable`` finds out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# No apostrophe: it may belong to the word before it ("don't").
_BOUNDARY = re.compile(
    r"(?<=[^\s\u2581]) |(?<=[^\W_])[\n\t.,;:!?/()\"\u2026\u3001\u3002\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f-]"
)
_REACH = (256, 65_536)
"""Characters at the end of a text among which a boundary is looked for; no word is longer than the second."""

_SAMPLES = (
    ("Hello", " there, 12 of you"),
    ("a line.", " 3"),
    ("x", "\n\n  y"),
    ("1", ".5 and"),
    ("\u4f60\u597d", "\uff0c\u4e16\u754c"),
    ("<", " b"),
    ("na\u00efve", ": a_b"),
)
_CONTINUATIONS = ("", " a", "\n1")


@dataclass(frozen=True, slots=True)
class Settled:
    """The head of a growing prompt that no further text changes.

    ``text`` is what ``ids`` stand for; None where encoding cannot go on from there.
    """

    ids: Sequence[int]
    text: str | None = None


def last_boundary(text: str) -> int:
    """The last place in ``text`` where it may be cut; 0 if there is none near its end."""
    for reach in _REACH:
        *_, last = (None, *_BOUNDARY.finditer(text, max(0, len(text) - reach)))
        if last is not None:
            return last.start()
    return 0


def is_separable(encode: Callable[[str], list[int]]) -> bool:
    """Whether a text's ids are those of its parts, where it is cut at a boundary."""
    return all(encode(head + rest) == encode(head) + encode(rest) for head, rest in _SAMPLES)


def common_head(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """The ids that ``text`` begins with whatever follows, for a tokenizer that is not separable: by trying."""
    ids, *others = (encode(text + rest) for rest in _CONTINUATIONS)
    for other in others:
        differs = (at for at, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b)
        ids = ids[: next(differs, min(len(ids), len(other)))]
    return ids
