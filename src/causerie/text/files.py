"""Reads a model folder's tokenizer and chat template, in the forms that Hugging Face repositories have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from causerie.errors import ModelUnavailable

GPT2_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class TextFiles:
    """What a folder says of its model's text."""

    tokenizer: Tokenizer
    chat_template: str | None
    special_tokens: Mapping[str, str]
    """``bos_token``, ``eos_token``, … by their spelling."""


def read_text_files(folder: Path) -> TextFiles:
    """Read ``tokenizer.json`` (or ``vocab.json`` and ``merges.txt``), the template and the special tokens.

    Raises ModelUnavailable for files that are missing or do not fit together.
    """
    try:
        config = _read_object(folder / "tokenizer_config.json")
        special_tokens = _special_tokens(config | _read_object(folder / "special_tokens_map.json"))
        tokenizer = _read_tokenizer(folder)
        _add_missing(tokenizer, _listed_tokens(folder, config), special_tokens)
        return TextFiles(tokenizer, _read_template(folder, config), special_tokens)
    except ModelUnavailable:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelUnavailable(f"The tokenizer files of {folder.name} cannot be read ({error}).") from error


def _read_tokenizer(folder: Path) -> Tokenizer:
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        tokenizer = Tokenizer.from_file(str(whole))
    elif vocabulary.is_file() and merges.is_file():
        tokenizer = Tokenizer(BPE.from_file(str(vocabulary), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if tokenizer.token_to_id(GPT2_END_OF_TEXT) is not None:
            tokenizer.add_special_tokens([GPT2_END_OF_TEXT])
    else:
        raise ModelUnavailable(
            f"{folder.name} has no tokenizer that can be read: it needs tokenizer.json, or vocab.json with merges.txt."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        # Older repositories of models with a processor keep it apart; transformers' tokenizer does not read it.
        template = _read_object(folder / "chat_template.json").get("chat_template")
    return template if isinstance(template, str) else None


def _read_object(file: Path) -> dict[str, Any]:
    content = orjson.loads(file.read_bytes()) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is not an object")
    return content


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _listed_tokens(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    """Tokens that the older files add to the tokenizer's own, by ascending id."""
    listed = {
        number: AddedToken(token, special=False, normalized=False)
        for token, number in _read_object(folder / "added_tokens.json").items()
    }
    for number, entry in config.get("added_tokens_decoder", {}).items():
        flags = {name: entry[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in entry}
        listed[int(number)] = AddedToken(entry["content"], special=bool(entry.get("special")), **flags)
    yield from sorted(listed.items())


def _add_missing(
    tokenizer: Tokenizer, listed: Iterator[tuple[int, AddedToken]], special_tokens: Mapping[str, str]
) -> None:
    known = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    for number, token in listed:
        if token.content not in known:
            tokenizer.add_tokens([token])
            known[token.content] = token.special
        if tokenizer.token_to_id(token.content) != number:
            raise ValueError(f"the token {token.content!r} has two ids")
    for text in dict.fromkeys(special_tokens.values()):
        if not known.get(text) and tokenizer.token_to_id(text) is not None:
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
