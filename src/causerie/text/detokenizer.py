"""From token ids to text, a few ids at a time.

What comes out, joined, is the tokenizer's ``decode(ids, skip_special_tokens=True)`` of all the ids, however
they were split. ``clean_up_tokenization_spaces`` is not applied: it would change text that was already sent.
One difference is wanted: where a run of byte tokens (``<0x0A>``) is not valid UTF-8, a SentencePiece tokenizer's
decoder gives up the whole run, whereas here its whole characters, which were sent when they were complete, stand.
"""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import orjson
from tokenizers import Tokenizer
from tokenizers.decoders import Decoder

_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_ESCAPED = re.compile("[\udc80-\udcff]")


class Detokenizer(Protocol):
    """Decodes one sequence. Control tokens, and ids that are not in the vocabulary, give no text."""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that the next ids complete: whole characters only."""
        ...

    def flush(self) -> str:
        """The sequence has ended: what is left, bytes that are no character as U+FFFD."""
        ...


class TokenTable(dict[int, bytes]):
    """The bytes that each token stands for, spelled when first asked for. Silent and unknown ids have none."""

    def __init__(self, tokenizer: Tokenizer, spell: Callable[[str], bytes], silent: frozenset[int]) -> None:
        super().__init__(dict.fromkeys(silent, b""))
        self._tokenizer = tokenizer
        self._spell = spell

    def __missing__(self, id: int) -> bytes:  # noqa: A002
        token = self._tokenizer.id_to_token(id)
        self[id] = spelled = b"" if token is None else self._spell(token)
        return spelled


class TableDetokenizer:
    """Decodes by joining the bytes of a table.

    ``lead`` is applied to the first token that has any. ``errors`` is how many U+FFFD stand for invalid bytes:
    ``replace`` gives one for each broken character, ``surrogateescape`` one for each byte.
    """

    __slots__ = ("_errors", "_lead", "_pending", "_table")

    def __init__(
        self, table: Mapping[int, bytes], errors: str = "replace", lead: Callable[[bytes], bytes] | None = None
    ) -> None:
        self._table = table
        self._errors = errors
        self._lead = lead
        self._pending = b""

    def feed(self, ids: Sequence[int]) -> str:
        pieces = map(self._table.__getitem__, ids)
        return self._decode(b"".join(pieces if self._lead is None else self._after_lead(pieces)), False)

    def flush(self) -> str:
        return self._decode(b"", True)

    def _after_lead(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if piece and self._lead is not None:
                yield self._lead(piece)
                self._lead = None
            else:
                yield piece

    def _decode(self, data: bytes, final: bool) -> str:
        data = self._pending + data
        text, used = utf_8_decode(data, self._errors, final)
        self._pending = data[used:]
        if self._errors != "replace" and not text.isascii():
            text = _ESCAPED.sub("\ufffd", text)
        return text


class WindowDetokenizer:
    """Decodes each token after the one before it, with the tokenizer's own decoder, whatever its rule is."""

    __slots__ = ("_said", "_silent", "_tokenizer", "_window")

    def __init__(self, tokenizer: Tokenizer, silent: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._silent = silent
        self._window: list[int] = []
        """The last token that gave text, and those after it that have given none yet."""
        self._said = ""
        """What the first of them stands for at the start of a text."""

    def feed(self, ids: Sequence[int]) -> str:
        return "".join(map(self._next, ids))

    def flush(self) -> str:
        rest = self._decode()[len(self._said) :]
        self._window, self._said = [], ""
        return rest

    def _next(self, token: int) -> str:
        if token in self._silent or self._tokenizer.id_to_token(token) is None:
            return ""
        self._window.append(token)
        text = self._decode()
        if text.endswith("\ufffd"):
            return ""
        gained = text[len(self._said) :]
        self._window = [token]
        self._said = self._decode()
        return gained

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text


class Detokenization:
    """How one tokenizer's ids become text: makes the detokenizers, and spells single tokens.

    ``silent`` ids give no text, beside those that the tokenizer has as special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, silent: frozenset[int]) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self._silent = silent | {number for number, token in added.items() if token.special}
        self._make = self._choose(_steps(_definition(tokenizer.decoder)))

    def start(self) -> Detokenizer:
        return self._make()

    def is_silent(self, id: int) -> bool:  # noqa: A002
        """Whether it gives no text, whatever its spelling."""
        return id in self._silent

    @property
    def is_table(self) -> bool:
        """Whether each id spells the same bytes wherever it stands, save for a space at the very beginning."""
        return self._is_table

    def spelled(self, id: int) -> bytes:  # noqa: A002
        """What a token adds to an answer: nothing for a silent one."""
        return self._table[id]

    def token_bytes(self, id: int) -> bytes:  # noqa: A002
        """What a token stands for, control tokens by their spelling; nothing for an id out of the vocabulary."""
        if id not in self._silent:
            return self._table[id]
        return (self._tokenizer.id_to_token(id) or "").encode()

    def _choose(self, steps: list[Mapping[str, Any]]) -> Callable[[], Detokenizer]:
        kinds = [step["type"] for step in steps]
        self._is_table = True
        if kinds == ["ByteLevel"]:
            self._table = table = TokenTable(self._tokenizer, _spell_byte_level, self._silent)
            return lambda: TableDetokenizer(table)
        spell = _spell_pieces if "ByteFallback" in kinds else _spell_spaces
        self._table = table = TokenTable(self._tokenizer, spell, self._silent)
        if kinds == ["Metaspace"]:
            metaspace = None if steps[0].get("prepend_scheme") == "never" else _without_spaces
            return lambda: TableDetokenizer(table, "surrogateescape", metaspace)
        if _is_sentencepiece(steps):
            strip = _without_first_space if kinds[-1] == "Strip" else None
            return lambda: TableDetokenizer(table, "surrogateescape", strip)
        self._is_table = False
        return lambda: WindowDetokenizer(self._tokenizer, self._silent)


def _definition(decoder: Decoder | None) -> Mapping[str, Any] | None:
    """A decoder's part of ``tokenizer.json``, which is what it is pickled as."""
    definition: Mapping[str, Any] | None = None if decoder is None else orjson.loads(decoder.__getstate__())
    return definition


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _is_sentencepiece(steps: list[Mapping[str, Any]]) -> bool:
    """Whether these are ``Replace(▁, space), ByteFallback, Fuse`` and at most the strip of one space in front."""
    kinds = [step["type"] for step in steps]
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or steps[0]["pattern"] != {"String": _SPACE}:
        return False
    strips = [(step["type"], step.get("content"), step.get("start"), step.get("stop")) for step in steps[3:]]
    return bool(steps[0]["content"] == " " and strips in ([], [("Strip", " ", 1, 0)]))


def _byte_characters() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable ones as themselves, the rest by characters from 256 on."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    return {chr(byte): byte for byte in kept} | {chr(256 + place): byte for place, byte in enumerate(moved)}


BYTE_CHARACTERS = _byte_characters()


def _spell_byte_level(token: str) -> bytes:
    try:
        return bytes([BYTE_CHARACTERS[character] for character in token])
    except KeyError:
        return token.encode()


def _spell_spaces(token: str) -> bytes:
    return token.replace(_SPACE, " ").encode()


def _spell_pieces(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else _spell_spaces(token)


def _without_spaces(data: bytes) -> bytes:
    return data.replace(b" ", b"")


def _without_first_space(data: bytes) -> bytes:
    return data.removeprefix(b" ")
