"""The rebuilt tokenizer, against a byte-pair encoder written out plainly here."""

from __future__ import annotations

import importlib
import json
import unicodedata
from functools import cache as remembered
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from causerie.errors import ModelUnavailable
from causerie.models.cache import cache_root
from causerie.models.default import fetch_default
from causerie.models.folder import ModelFolder
from causerie.models.gguf_file import GgufFile
from causerie.models.gguf_tokenizer import TokenizerFacts, write_tokenizer
from causerie.models.progress import Silent
from tests.support.tiny_models import SPECIAL, write_tiny_gguf

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PIECES = (
    *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "0", "7", "42", "1234567", "٣", "½", "²"),
    *("the", " the", "dog", "Talk", "don't", "WE'LL", "I'm", "'s", "é", "e\u0301", "ñandú", "Straße", "İ"),
    *(
        "你好",
        "世界。",
        "こんにちは",
        "한국어",
        "नमस्ते",
        "مرحبا",
        "ไทย",
        "👍🏽",
        "\U0001f468\u200d\U0001f469",
        "👨‍👩‍👧",
        "🇫🇷",
        "\u200d",
        "\ufeff",
    ),
    *(
        "def f(x):",
        "return",
        "==",
        "!!!",
        "...",
        "_",
        "{}",
        "<|",
        "|>",
        "$1.50",
        "a_b",
        "http://",
        "\\n",
        "\u2013",
        "\x00",
    ),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def words(pre: str, text: str) -> list[str]:
    """``text`` cut as the models behind a pre-tokenizer's name cut it, by the patterns that they publish."""
    if pre == "smollm":
        runs = regex.split(r"(\p{N})", text)
        return [w for run in runs for w in ([run] if regex.fullmatch(r"\p{N}", run) else regex.findall(GPT2, run))]
    if pre == "qwen2":
        qwen = importlib.import_module("transformers.models.qwen2.tokenization_qwen2")
        return list(regex.findall(qwen.PRETOKENIZE_REGEX, unicodedata.normalize("NFC", text)))
    if pre == "llama-bpe":
        convert = importlib.import_module("transformers.convert_slow_tokenizer")
        return list(regex.findall(convert.TikTokenConverter().pattern, text))
    return list(regex.findall(GPT2, text))


@remembered
def letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it can be seen, else the next unused one from U+0100."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (b for b in range(256) if b not in seen)
    return {b: chr(b) for b in seen} | {b: chr(0x100 + n) for n, b in enumerate(hidden)}


def encode(file: GgufFile, pre: str, text: str, *, whole_words: bool = False) -> list[int]:
    """Byte-pair encoding as its paper has it: merge the pair of the lowest rank, until there is none."""
    ids, ranks = tables(file)
    out = []
    for word in words(pre, text):
        symbols = [letters()[byte] for byte in word.encode()]
        if whole_words and "".join(symbols) in ids:
            symbols = ["".join(symbols)]
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: ranks.get(pair, 1 << 30))
            if best not in ranks:
                break
            at, merged = 0, []
            while at < len(symbols):
                if tuple(symbols[at : at + 2]) == best:
                    merged.append("".join(best))
                    at += 2
                else:
                    merged.append(symbols[at])
                    at += 1
            symbols = merged
        out += [ids[symbol] for symbol in symbols]
    return out


@remembered
def tables(file: GgufFile) -> tuple[dict[str, int], dict[tuple[str, ...], int]]:
    ids = {token: number for number, token in enumerate(file.get("tokenizer.ggml.tokens"))}
    merges = file.get("tokenizer.ggml.merges")
    return ids, {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}


def rebuilt(folder: Path, **metadata: Any) -> tuple[GgufFile, TokenizerFacts, Tokenizer]:
    folder.mkdir(exist_ok=True)
    write_tiny_gguf(folder / "m.gguf", **metadata)
    file = GgufFile(folder / "m.gguf")
    facts = write_tokenizer(file, folder)
    return file, facts, Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "qwen2", "llama-bpe"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, GgufFile, Tokenizer]:
    file, _, tokenizer = rebuilt(tmp_path_factory.mktemp("tokenizer"), tokenizer__ggml__pre=request.param)
    return request.param, file, tokenizer


@given(TEXTS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_has_the_ids_of_the_plain_encoder(tiny: tuple[str, GgufFile, Tokenizer], text: str) -> None:
    pre, file, tokenizer = tiny
    expected = encode(file, pre, text, whole_words=pre == "llama-bpe")
    assert tokenizer.encode(text, add_special_tokens=False).ids == expected
    decoded = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
    assert tokenizer.decode(expected) == decoded


def test_spaces_before_a_digit_stay_together_under_smollm(tmp_path: Path) -> None:
    _, _, smollm = rebuilt(tmp_path / "a", tokenizer__ggml__pre="smollm")
    _, _, gpt2 = rebuilt(tmp_path / "b", tokenizer__ggml__pre="gpt-2")
    assert [t for t, _ in smollm.pre_tokenizer.pre_tokenize_str("x   12")] == ["x", "ĠĠĠ", "1", "2"]
    assert [t for t, _ in gpt2.pre_tokenizer.pre_tokenize_str("x   12")] == ["x", "ĠĠ", "Ġ12"]


def test_llama3_takes_a_whole_word_before_its_merges(tmp_path: Path) -> None:
    from tests.support.tiny_models import tiny_decoder, tiny_tokenizer

    vocabulary = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary[:-1]] + ["zyx"]
    types = [3 if token in SPECIAL else 1 for token in tokens]
    merges = [m for m in json.loads(tiny_tokenizer().to_str())["model"]["merges"] if "".join(m) in tokens]
    changes: dict[str, Any] = {
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": types,
        "tokenizer__ggml__merges": [" ".join(m) for m in merges],
    }
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        _, _, tokenizer = rebuilt(tmp_path / pre, model=tiny_decoder(), tokenizer__ggml__pre=pre, **changes)
        assert (tokenizer.encode("zyx", add_special_tokens=False).tokens == ["zyx"]) is whole


def test_control_tokens_are_special_and_user_defined_ones_are_text(tmp_path: Path) -> None:
    types = [3, 3, 4] + [1] * 349
    _, _, tokenizer = rebuilt(tmp_path, tokenizer__ggml__token_type=types)
    added = tokenizer.get_added_tokens_decoder()
    assert {number: (token.content, token.special) for number, token in added.items()} == {
        0: ("<|endoftext|>", True),
        1: ("<|im_start|>", True),
        2: ("<|im_end|>", False),
    }
    assert tokenizer.encode("a<|im_start|>b<|im_end|>").tokens == ["a", "<|im_start|>", "b", "<|im_end|>"]
    assert tokenizer.decode([1, 2]) == "<|im_end|>"


def test_template_and_special_names_are_kept_as_they_are(tmp_path: Path) -> None:
    template = "{{ bos_token }}\r\n{% for m in messages %}{{ m.content }}é{% endfor %}"
    rebuilt(tmp_path, tokenizer__chat_template=template)
    assert (tmp_path / "chat_template.jinja").read_bytes().decode() == template
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|endoftext|>", "<|im_end|>")


def test_no_template_writes_none(tmp_path: Path) -> None:
    rebuilt(tmp_path, tokenizer__chat_template=None)
    assert not (tmp_path / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [
        ({}, {0, 2}),
        ({"tokenizer__ggml__eot_token_id": 9}, {0, 2, 9}),
        ({"tokenizer__ggml__eos_token_id": 5, "tokenizer__ggml__token_type": [1] * 352}, {5}),
    ],
)
def test_all_ends_of_a_turn_are_found(metadata: dict[str, Any], ends: set[int], tmp_path: Path) -> None:
    assert rebuilt(tmp_path, **metadata)[1].eos_token_ids == ends


@pytest.mark.parametrize(
    ("pre", "says", "bos"),
    [("smollm", True, 0), ("smollm", False, None), ("smollm", None, None), ("llama-bpe", None, 0)],
)
def test_bos_is_given_only_where_the_model_wants_it(
    pre: str, says: bool | None, bos: int | None, tmp_path: Path
) -> None:
    facts = rebuilt(tmp_path, tokenizer__ggml__pre=pre, tokenizer__ggml__add_bos_token=says)[1]
    assert facts.bos_token_id == bos


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tokenizer__ggml__pre": "chameleon"}, "'chameleon'"),
        ({"tokenizer__ggml__pre": "default"}, "'default'"),
        ({"tokenizer__ggml__pre": None}, "None"),
        ({"tokenizer__ggml__model": "llama"}, "'llama'"),
        ({"tokenizer__ggml__merges": ["no such"]}, "not consistent"),
        ({"tokenizer__ggml__merges": ["unparted"]}, "not consistent"),
        ({"tokenizer__ggml__tokens": ["a", "a"]}, "not consistent"),
        ({"tokenizer__ggml__eos_token_id": None, "tokenizer__ggml__token_type": [1] * 352}, "eos_token_id"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        rebuilt(tmp_path, **metadata)


@pytest.mark.model
def test_default_models_ids_are_those_of_the_plain_encoder(default_folder: ModelFolder) -> None:
    file = GgufFile(fetch_default(cache_root(), Silent()))
    tokenizer = Tokenizer.from_file(str(default_folder.path / "tokenizer.json"))
    texts = [*PIECES, *(a + b for a in PIECES for b in PIECES), Path(__file__).read_text(encoding="utf-8")[:4000]]
    for text in texts:
        assert tokenizer.encode(text).ids == encode(file, "smollm", text), repr(text)
    assert default_folder.eos_token_ids == {0, 2}
    assert default_folder.bos_token_id is None


@pytest.mark.model
def test_default_models_digit_trap_by_hand(default_folder: ModelFolder) -> None:
    tokenizer = Tokenizer.from_file(str(default_folder.path / "tokenizer.json"))
    assert tokenizer.encode("in   2024").tokens == ["in", "ĠĠĠ", "2", "0", "2", "4"]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids == [1, 4093, 198, 26843, 2]
