"""Facts of a model folder in Hugging Face's layout: a hub snapshot or a local folder, safetensors or OpenVINO."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from causerie.errors import ModelUnavailable
from causerie.models.folder import DESCRIPTION_FILE, TEXT_FILES, ModelFolder, read_folder

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


def describe_folder(path: Path, name: str, form: Literal["openvino", "safetensors"]) -> ModelFolder:
    """Read a folder's config and tokenizer files. Raises ModelUnavailable if a part of the model is missing."""
    if (path / DESCRIPTION_FILE).is_file():
        return read_folder(path)
    weights = _weights(path, name, form)
    config = _read(path, "config.json", name)
    if not config:
        raise _missing(name, "config.json")
    config = {**config, **(config.get("text_config") or {})}
    tokens = _Tokens(path, name)
    layers = _number(config, name, "num_hidden_layers", "n_layer", "n_layers")
    heads = _number(config, name, "num_attention_heads", "n_head", "n_heads")
    width = _number(config, name, "hidden_size", "n_embd", "d_model")
    kv_heads = config.get("num_key_value_heads") or heads
    return ModelFolder(
        path=path,
        name=name,
        format=form,
        architecture=str(config.get("model_type", "unknown")),
        context_window=_number(config, name, *_CONTEXT_KEYS),
        eos_token_ids=_ends(path, name, config, tokens),
        bos_token_id=tokens.bos(),
        kv_bytes_per_token=2 * layers * kv_heads * (config.get("head_dim") or width // heads) * 2,
        vocab_size=_number(config, name, "vocab_size"),
        fingerprint=_fingerprint(path, weights, form),
    )


def _weights(path: Path, name: str, form: str) -> Sequence[Path]:
    """The files of the weights, all of which are there."""
    index = path / "model.safetensors.index.json"
    if form == "openvino":
        names = ["openvino_model.xml", "openvino_model.bin"]
    elif (path / "model.safetensors").is_file() or not index.is_file():
        names = ["model.safetensors"]
    else:
        names = sorted(set(_read(path, index.name, name).get("weight_map", {}).values()))
    for file in names:
        if not (path / file).is_file():
            raise _missing(name, file)
    return [path / file for file in names]


def _missing(name: str, file: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{name} has no {file}, which is needed. If it is from the hub, fetch it again with a network: "
        "'causerie pull'.",
        param="model",
    )


def _read(path: Path, file: str, name: str) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    try:
        content = json.loads((path / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{name}: {file} cannot be read ({error}).", param="model") from None
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{name}: {file} does not hold a JSON object.", param="model")
    return content


def _number(config: Mapping[str, Any], name: str, *keys: str) -> int:
    for key in keys:
        if isinstance(value := config.get(key), int) and value > 0:
            return value
    raise ModelUnavailable(
        f"{name}: its config.json gives no {keys[0]}, so it is not a language model that can be served.", param="model"
    )


def _ends(path: Path, name: str, config: Mapping[str, Any], tokens: _Tokens) -> frozenset[int]:
    """``generation_config.json`` says what ends an answer, else ``config.json``; the tokenizer's own
    end-of-text, which chat models set to their end of turn, always does."""
    generation = _read(path, "generation_config.json", name)
    said = generation.get("eos_token_id")
    said = config.get("eos_token_id") if said is None else said
    ends = set(said if isinstance(said, list) else [said])
    ends.add(tokens.id_of(tokens.config.get("eos_token")))
    found = frozenset(end for end in ends if isinstance(end, int))
    if not found:
        raise ModelUnavailable(
            f"{name} does not say which token ends an answer: generation_config.json has no eos_token_id.",
            param="model",
        )
    return found


class _Tokens:
    """As much of the tokenizer's files as tells special tokens apart."""

    def __init__(self, path: Path, name: str) -> None:
        self.config = _read(path, "tokenizer_config.json", name)
        self._tokenizer = _read(path, "tokenizer.json", name)
        self._vocabulary = {} if self._tokenizer else _read(path, "vocab.json", name)
        if not self._tokenizer and not (self._vocabulary and (path / "merges.txt").is_file()):
            raise _missing(name, "tokenizer.json")

    def id_of(self, token: Any) -> int | None:
        """The id of a token as ``tokenizer_config.json`` writes it: its text, or an object that holds it."""
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str):
            return None
        for added in self._tokenizer.get("added_tokens", []):
            if added.get("content") == text:
                return int(added["id"])
        vocabulary = self._tokenizer.get("model", {}).get("vocab", self._vocabulary)
        number = vocabulary.get(text) if isinstance(vocabulary, dict) else None
        return number if isinstance(number, int) else None

    def bos(self) -> int | None:
        """The id that the tokenizer itself puts before a plain text."""
        for processor in _processors(self._tokenizer.get("post_processor")):
            single = processor.get("single") or []
            if processor.get("type") == "TemplateProcessing" and single and "SpecialToken" in single[0]:
                special = processor["special_tokens"][single[0]["SpecialToken"]["id"]]
                return int(special["ids"][0])
        if self.config.get("add_bos_token") and not self._tokenizer.get("post_processor"):
            return self.id_of(self.config.get("bos_token"))
        return None


def _processors(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, dict):
        yield node
        for inner in node.get("processors") or ():
            yield from _processors(inner)


def _fingerprint(path: Path, weights: Iterable[Path], form: str) -> str:
    """Over what the weights' files are called where they are kept (the hub's cache names them by content), their
    sizes and times, and all of the tokenizer's."""
    digest = hashlib.sha256(form.encode())
    for file in weights:
        real = file.resolve()
        status = real.stat()
        digest.update(f"{file.name} {real.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    for file in (path / name for name in TEXT_FILES):
        if file.is_file():
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
