"""A tokenizer that knows which of its tokens control the model, and can take text for text.

``add_special_tokens=False`` does not stop a tokenizer from reading ``<|im_end|>`` in a text as the control token.
So there are two of it: the whole one, and a plain one in which no text spells a control token.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from causerie.errors import ContextLengthExceeded

_SPACE = re.compile(r"[^\S\x1c-\x1f]")
"""Whitespace as the tokenizers library has it."""
_WORD = re.compile(r"\w")
_BARS = frozenset("|\uff5c")


class ControlSpan(NamedTuple):
    """A control token, and the characters of a text that it takes up: its spelling and the spaces that it eats."""

    id: int
    start: int
    end: int


class ControlTokenizer:
    """Encodes text with or without its control tokens. May be used from several threads at once.

    A token is a control token if it is special, if it is named in ``control`` (by id), or if it was added to
    the vocabulary and either the chat template spells it or it is written with bars (``<|…|>``). Added tokens
    of mere whitespace, and words, are text.
    """

    def __init__(self, tokenizer: Tokenizer, *, control: frozenset[int] = frozenset(), template: str = "") -> None:
        # Texts come one at a time, so a pool of threads would be of no use; and it warns when the process forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        added = tokenizer.get_added_tokens_decoder()
        self.controls = {
            token.content: number
            for number, token in added.items()
            if token.content.strip()
            and (token.special or number in control or token.content in template or not _BARS.isdisjoint(token.content))
        }
        self.control_ids = frozenset(self.controls.values())
        self._whole = tokenizer
        self._sentinel = f"<{secrets.token_hex(16)}>"
        self._plain = _without(tokenizer, self.controls, self._sentinel)
        self._sentinel_id = self._plain.token_to_id(self._sentinel)
        # The library looks for the tokens that are not normalized first, so others do not matter to where they are.
        self._literal = {token.content: token for token in added.values() if not token.normalized}
        self._pattern = re.compile(_trie_pattern(sorted(self._literal)) if self._literal else r"(?!)")
        normalized = any(added[number].normalized for number in self.control_ids)
        self._splitter = splitter = _splitter(tokenizer, added.values()) if normalized else None
        own_ids = [] if splitter is None else [(splitter.token_to_id(text), text) for text in self.controls]
        self._id_of_split = {number: self.controls[text] for number, text in own_ids}

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """The ids as transformers has them, control tokens included.

        Raises ContextLengthExceeded if there are more than ``limit``; so does ``encode_plain``.
        """
        return _encode(self._whole, text, limit)

    def encode_plain(self, text: str, own: Sequence[ControlSpan] = (), limit: int | None = None) -> list[int]:
        """The ids of ``text`` as mere text, save for the control tokens ``own`` that it has by right."""
        parts, end = [], 0
        for span in own:
            parts += [text[end : span.start], self._sentinel]
            end = span.end
        ids = _encode(self._plain, "".join([*parts, text[end:]]), limit)
        own_ids = (span.id for span in own)
        return [next(own_ids) if number == self._sentinel_id else number for number in ids] if own else ids

    def spans(self, text: str) -> Iterator[ControlSpan]:
        """The control tokens that ``encode`` would find in ``text``, from left to right."""
        return self._spans_by_pattern(text) if self._splitter is None else self._spans_by_splitter(text)

    def normalize(self, text: str) -> str:
        """``text`` as control tokens are looked for in it."""
        if self._splitter is None or self._whole.normalizer is None:
            return text
        normalized: str = self._whole.normalizer.normalize_str(text)
        return normalized

    def _spans_by_pattern(self, text: str) -> Iterator[ControlSpan]:
        done = 0
        for match in self._pattern.finditer(text):
            token, (start, end) = self._literal[match[0]], match.span()
            if token.single_word and (_WORD.match(text, end) or (start and _WORD.match(text, start - 1))):
                continue
            while token.lstrip and start > done and _SPACE.match(text, start - 1):
                start -= 1
            while token.rstrip and _SPACE.match(text, end):
                end += 1
            done = end
            if (number := self.controls.get(token.content)) is not None:
                yield ControlSpan(number, start, end)

    def _spans_by_splitter(self, text: str) -> Iterator[ControlSpan]:
        assert self._splitter is not None
        encoding = self._splitter.encode_batch([text], add_special_tokens=False)[0]
        for found, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if (number := self._id_of_split.get(found)) is not None:
                yield ControlSpan(number, start, end)


def _encode(tokenizer: Tokenizer, text: str, limit: int | None) -> list[int]:
    # A batch of one: it releases the GIL while it works, which ``encode`` does not. Listing the ids does not, and
    # the millions of a text that is too long would hold up every other thread.
    encoding = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
    if limit is not None and len(encoding) > limit:
        raise ContextLengthExceeded(len(encoding), limit)
    ids: list[int] = encoding.ids
    return ids


def _splitter(tokenizer: Tokenizer, added: Iterable[AddedToken]) -> Tokenizer:
    """The tokenizer with no vocabulary but the added tokens: it finds those, and leaves the rest as it is."""
    splitter = Tokenizer(WordLevel({"\0": 0}, unk_token="\0"))
    if tokenizer.normalizer is not None:
        splitter.normalizer = tokenizer.normalizer
    splitter.add_tokens(list(added))
    return splitter


def _without(tokenizer: Tokenizer, controls: Mapping[str, int], sentinel: str) -> Tokenizer:
    """The tokenizer with the same ids but control tokens that nobody can write, and ``sentinel`` added.

    They are renamed in the vocabulary too, since some models (Unigram, merges made from the vocabulary) would find
    them there. Only one that is a single character of the vocabulary becomes that character: it may be a letter of
    the alphabet that all other tokens are made of.
    """
    definition = orjson.loads(tokenizer.to_str())
    model = definition["model"]
    letters = {text for text in controls if len(text) == 1 and text in model["vocab"]}
    names = {text: f"<{number}:{sentinel}>" for text, number in controls.items() if text not in letters}
    added = [token for token in definition["added_tokens"] if token["content"] not in letters]
    definition["added_tokens"] = [token | {"content": names.get(token["content"], token["content"])} for token in added]
    definition["post_processor"] = None
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
        model.update({"unk_token": names[model["unk_token"]]} if model.get("unk_token") in names else {})
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left + right not in names and left not in names and right not in names
        ]
    plain = Tokenizer.from_buffer(orjson.dumps(definition))
    plain.add_special_tokens([AddedToken(sentinel, special=True, normalized=False)])
    return plain


def _trie_pattern(words: Sequence[str]) -> str:
    """A pattern for the longest of ``words`` (sorted) at a place, whose cost does not grow with their number."""
    length = next((at for at, (a, b) in enumerate(zip(words[0], words[-1], strict=False)) if a != b), len(words[0]))
    prefix, rests = words[0][:length], [word[length:] for word in words]
    branches: dict[str, list[str]] = {}
    for rest in rests:
        if rest:
            branches.setdefault(rest[0], []).append(rest)
    pattern = re.escape(prefix)
    if branches:
        pattern += f"(?:{'|'.join(_trie_pattern(branch) for branch in branches.values())})"
        pattern += "?" if "" in rests else ""
    return pattern
