"""A Hugging Face ``tokenizer.json`` out of a GGUF file's metadata.

GGUF keeps a tokenizer's vocabulary and merges, but of the rule that cuts text into words only a name. A wrong
rule gives wrong ids without a sign of it, so only the names whose rule is known are taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from causerie.errors import ModelUnavailable
from causerie.models.gguf_file import GgufFile

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class TokenType(IntEnum):
    """What ``tokenizer.ggml.token_type`` says of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class WordRule:
    """What a pre-tokenizer's name stands for in the tokenizers of the models that it is written for."""

    split: Callable[[], Any]
    compose: bool = False
    """Text is brought to Unicode's NFC first."""
    whole_words_first: bool = False
    """A word that is in the vocabulary is that token, whatever the merges say."""
    add_bos: bool = False
    """What holds where the file does not say."""


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _pattern(digits: str) -> Callable[[], Any]:
    regex = f"{_CONTRACTIONS}|{_WORDS}|{digits}|{_REST}"

    def build() -> Any:
        split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


_LLAMA3 = WordRule(_pattern(r"\p{N}{1,3}"), whole_words_first=True, add_bos=True)
WORD_RULES: dict[str, WordRule] = {
    "gpt-2": WordRule(_byte_level),
    "smollm": WordRule(_single_digits),
    "qwen2": WordRule(_pattern(r"\p{N}"), compose=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}

END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "</s>"}
)
"""Control tokens with which the known chat templates end a turn or a text. Files often name only one of theirs as
``eos_token_id``; after any of them a model has nothing more to say."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What the tokenizer says of the ends of a text. The meanings are ``ModelFolder``'s."""

    eos_token_ids: frozenset[int]
    bos_token_id: int | None


def write_tokenizer(file: GgufFile, folder: Path) -> TokenizerFacts:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` (if any) into ``folder``.

    Raises ModelUnavailable for a tokenizer that cannot be rebuilt with certainty.
    """
    tokens: list[str] = file.need("tokenizer.ggml.tokens")
    types: list[int] = file.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    rule = _word_rule(file)
    try:
        tokenizer = _build(tokens, types, file.get("tokenizer.ggml.merges", []), rule)
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelUnavailable(f"{file.path.name}: its tokenizer is not consistent ({error}).") from None
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    bos, eos = file.get("tokenizer.ggml.bos_token_id"), file.get("tokenizer.ggml.eos_token_id")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _token(tokens, bos),
        "eos_token": _token(tokens, eos),
        "pad_token": _token(tokens, file.get("tokenizer.ggml.padding_token_id")),
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.own("context_length"),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    if template := file.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    add_bos = file.get("tokenizer.ggml.add_bos_token", rule.add_bos)
    return TokenizerFacts(_ends(file, tokens, types), bos if add_bos else None)


def _word_rule(file: GgufFile) -> WordRule:
    model, name = file.need("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    rule = WORD_RULES.get(name or "")
    if model == "gpt2" and rule is not None:
        return rule
    what = f"tokenizer is {model!r}" if model != "gpt2" else f"pre-tokenizer is {name!r}"
    raise ModelUnavailable(
        f"{file.path.name}: its {what}, and a GGUF file does not say enough to rebuild that one with certainty. Known: "
        f"gpt2 with {', '.join(WORD_RULES)}. Use the repository that the file was made from, the one with "
        'safetensors: pip install "causerie[transformers]".'
    )


def _build(tokens: list[str], types: list[int], merges: list[str], rule: WordRule) -> Tokenizer:
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise ValueError("tokens are listed twice, or not every token has a type")
    pairs = [_parted(merge) for merge in merges]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, pairs, ignore_merges=rule.whole_words_first))
    if rule.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rule.split()
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((TokenType.CONTROL, True), (TokenType.USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, its in zip(tokens, types, strict=True)
            if its == kind
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    if tokenizer.get_vocab_size() != len(tokens):
        raise ValueError("an added token is not in the vocabulary")
    return tokenizer


def _parted(merge: str) -> tuple[str, str]:
    """A merge's two sides. The first side is never empty, so a space at the start belongs to it."""
    space = merge.index(" ", 1)
    return merge[:space], merge[space + 1 :]


def _token(tokens: list[str], number: int | None) -> str | None:
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None


def _ends(file: GgufFile, tokens: list[str], types: list[int]) -> frozenset[int]:
    named = {file.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")}
    known = {
        number
        for number, token in enumerate(tokens)
        if token in END_OF_TURN and types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED)
    }
    ends = frozenset(number for number in named | known if number is not None)
    if not ends:
        raise ModelUnavailable(f"{file.path.name} does not say which token ends a text (tokenizer.ggml.eos_token_id).")
    return ends
