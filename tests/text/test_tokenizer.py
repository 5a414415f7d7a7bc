"""Control tokens are found in a text exactly where the tokenizers library finds them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from causerie.text.tokenizer import ControlSpan, ControlTokenizer
from tests.text import builders


def flagged() -> Tokenizer:
    tokenizer = builders.byte_level("<a>", "<ab>", "<|x|>")
    tokenizer.add_special_tokens(
        [
            AddedToken("<l>", lstrip=True, special=True, normalized=False),
            AddedToken("<r>", rstrip=True, special=True, normalized=False),
            AddedToken("<m>", lstrip=True, rstrip=True, special=True, normalized=False),
            AddedToken("word", single_word=True, special=True, normalized=False),
        ]
    )
    tokenizer.add_tokens(["  ", "<a"])
    return tokenizer


def normalized_without_a_normalizer() -> Tokenizer:
    tokenizer = flagged()
    tokenizer.add_special_tokens([AddedToken("<|x", special=True, normalized=True), AddedToken(">x", special=True)])
    return tokenizer


TOKENIZERS = {
    "flags": flagged(),
    "flags, normalized": normalized_without_a_normalizer(),
    "after NFKC": builders.compatible_forms("<a>", "<ab>", "<m>"),
    "sentencepiece": builders.sentencepiece("<a>", "<ab>"),
}
PIECES = ["<a>", "<ab>", "<|x|>", "<l>", "<r>", "<m>", "word", "<a", "b>", "<", "|", ">", "s>", "</s>", "x", "é"]
SPACES = [" ", "  ", "\n", "\x1f", "\x85", "\u00a0", "\u3000", "\uff1c", "\uff1e"]


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_spans_are_where_the_library_finds_control_tokens(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ours = ControlTokenizer(tokenizer)

    @given(st.lists(st.sampled_from(PIECES + SPACES), max_size=10).map("".join))
    @example("<r>  <l>")
    @example("  <l>")
    @example("words word, word_ <a word")
    def check(text: str) -> None:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        expected = [ControlSpan(number, *offsets) for number, offsets in found if number in ours.control_ids]
        assert list(ours.spans(text)) == expected

    check()


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_text_with_its_own_control_tokens_has_the_whole_tokenizers_ids(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ours = ControlTokenizer(tokenizer)

    @given(st.lists(st.sampled_from(PIECES + SPACES), max_size=10).map("".join))
    def check(text: str) -> None:
        assert ours.encode_plain(text, list(ours.spans(text))) == ours.encode(text)

    check()
