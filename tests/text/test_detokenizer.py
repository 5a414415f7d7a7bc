"""Deltas joined are the decoded ids, however they were split, and no character is ever sent in halves."""

from __future__ import annotations

import re
from itertools import groupby

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from causerie.text.detokenizer import Detokenization
from tests.text import builders

BYTE_LEVEL = builders.byte_level("<|im_end|>")
SENTENCEPIECE = builders.sentencepiece()
UNIGRAM = builders.unigram()
WORDS = builders.words()
WORD_PIECES = builders.word_pieces()
EVERY_KIND = [BYTE_LEVEL, SENTENCEPIECE, UNIGRAM, WORDS, WORD_PIECES]

HARD_TEXTS = [
    "👨‍👩‍👧‍👦 family",
    "你好。世界",
    "e\u0301 a\u0308\u0323 (combining)",
    "🇫🇷🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "हिन्दी ภาษาไทย العربية",
    "tabs\tand\r\nlines\u2028\0",
    "  leading and trailing  ",
]


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids, some of them out of the vocabulary."""
    return st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=24)


def deltas(tokenizer: Tokenizer, pieces: list[list[int]]) -> list[str]:
    detokenizer = Detokenization(tokenizer, frozenset()).start()
    sent = [detokenizer.feed(piece) for piece in pieces]
    return [*sent, detokenizer.flush()]


def every_split(ids: list[int]) -> list[list[list[int]]]:
    return [[[token] for token in ids], [ids], *([ids[:cut], ids[cut:]] for cut in range(len(ids)))]


def whole(tokenizer: Tokenizer, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


@given(ids_of(BYTE_LEVEL))
def test_byte_level_equals_the_full_decode_at_every_split(ids: list[int]) -> None:
    for pieces in every_split(ids):
        assert "".join(deltas(BYTE_LEVEL, pieces)) == whole(BYTE_LEVEL, ids)


@given(st.binary(max_size=16))
def test_any_bytes_equal_the_full_decode(data: bytes) -> None:
    vocabulary = BYTE_LEVEL.get_vocab()
    by_byte = {Detokenization(BYTE_LEVEL, frozenset()).token_bytes(number): number for number in vocabulary.values()}
    ids = [by_byte[bytes([byte])] for byte in data]
    for pieces in every_split(ids):
        assert "".join(deltas(BYTE_LEVEL, pieces)) == whole(BYTE_LEVEL, ids) == data.decode("utf-8", "replace")


def byte_runs(tokenizer: Tokenizer, ids: list[int]) -> list[bytes]:
    silent = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    tokens = [tokenizer.id_to_token(number) for number in ids if number not in silent]
    values = [re.fullmatch("<0x(..)>", token) for token in tokens if token is not None]
    return [bytes(int(match[1], 16) for match in run if match) for is_byte, run in groupby(values, key=bool) if is_byte]


def comparable(run: bytes) -> bool:
    """Whether a run of byte tokens is all characters or has none: else ours keeps those that the decoder gives up."""
    characters = run.decode("utf-8", "ignore")
    return not characters or characters.encode() == run


@given(ids_of(SENTENCEPIECE))
def test_sentencepiece_equals_the_full_decode_at_every_split(ids: list[int]) -> None:
    assume(all(comparable(run) for run in byte_runs(SENTENCEPIECE, ids)))
    for pieces in every_split(ids):
        assert "".join(deltas(SENTENCEPIECE, pieces)) == whole(SENTENCEPIECE, ids)


@given(st.text(max_size=12))
def test_sentencepiece_gives_back_any_text(text: str) -> None:
    ids = SENTENCEPIECE.encode(text, add_special_tokens=False).ids
    for pieces in every_split(ids):
        assert "".join(deltas(SENTENCEPIECE, pieces)) == whole(SENTENCEPIECE, ids)


def test_a_whole_character_stands_though_broken_bytes_follow_it() -> None:
    ids = [builders.token_id(SENTENCEPIECE, f"<0x{byte:02X}>") for byte in "ß".encode() + b"\xff\xc3"]
    assert deltas(SENTENCEPIECE, [[token] for token in ids]) == ["", "ß", "\ufffd", "", "\ufffd"]


@pytest.mark.parametrize("tokenizer", [UNIGRAM, WORDS, WORD_PIECES], ids=["unigram", "words", "word pieces"])
def test_other_decoders_equal_the_full_decode_at_every_split(tokenizer: Tokenizer) -> None:
    @given(ids_of(tokenizer))
    def check(ids: list[int]) -> None:
        for pieces in every_split(ids):
            assert "".join(deltas(tokenizer, pieces)) == whole(tokenizer, ids)

    check()


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_no_delta_holds_a_part_of_a_character(text: str) -> None:
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        sent = deltas(tokenizer, [[token] for token in tokenizer.encode(text, add_special_tokens=False).ids])
        assert "".join(sent) == text
        assert not any("\ufffd" in delta for delta in sent)


def test_a_character_is_sent_with_its_last_byte() -> None:
    ids = BYTE_LEVEL.encode("🦊!", add_special_tokens=False).ids
    assert len(ids) == 5
    assert deltas(BYTE_LEVEL, [[token] for token in ids]) == ["", "", "", "🦊", "!", ""]


def test_a_broken_end_is_one_replacement_character() -> None:
    ids = BYTE_LEVEL.encode("ok🦊", add_special_tokens=False).ids[:-1]
    assert deltas(BYTE_LEVEL, [[token] for token in ids])[-1] == "\ufffd"


@pytest.mark.parametrize("tokenizer", EVERY_KIND)
def test_control_tokens_and_unknown_ids_give_no_text(tokenizer: Tokenizer) -> None:
    controls = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    assert controls
    assert deltas(tokenizer, [controls, [10**6, 2**31]]) == ["", "", ""]


def test_an_end_of_text_that_is_not_marked_special_gives_no_text() -> None:
    a = builders.token_id(BYTE_LEVEL, "a")
    assert Detokenization(BYTE_LEVEL, frozenset({a})).start().feed([a]) == ""


@pytest.mark.parametrize("tokenizer", EVERY_KIND)
def test_single_tokens_are_spelled(tokenizer: Tokenizer) -> None:
    detokenization = Detokenization(tokenizer, frozenset())
    control, token = next(iter(tokenizer.get_added_tokens_decoder().items()))
    assert detokenization.token_bytes(builders.token_id(tokenizer, "a")) == b"a"
    assert detokenization.token_bytes(control) == token.content.encode()
    assert detokenization.token_bytes(10**6) == b""
