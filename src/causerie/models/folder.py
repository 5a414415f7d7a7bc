"""What the rest of the house needs to know of a model that is ready on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from causerie.errors import ModelUnavailable
from causerie.models.precision import WeightForm

__all__ = ["DESCRIPTION_FILE", "TEXT_FILES", "ModelFolder", "WeightForm", "read_folder", "write_folder"]

DESCRIPTION_FILE = "causerie.json"
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What the tokenizer and the chat template are read from, so what is fetched and what the fingerprint covers."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that an engine can load, and the facts of the model in it."""

    path: Path
    """Holds the weights and the tokenizer files."""
    name: str
    """What ``/v1/models`` lists."""
    format: Literal["openvino", "safetensors"]
    architecture: str
    """``llama``, ``gpt2``, …: the model's own name for its kind."""
    context_window: int
    """Prompt and answer together, in tokens."""
    eos_token_ids: frozenset[int]
    """Every id that ends an answer."""
    bos_token_id: int | None
    """The id to put before a plain text prompt; None where the model wants none. Chat templates write their own."""
    kv_bytes_per_token: int
    """Of the KV cache, at two bytes an element."""
    vocab_size: int
    fingerprint: str
    """Changes when the weights, their form, the tokenizer or the template do."""


def write_folder(folder: ModelFolder) -> None:
    """Put ``folder``'s facts into its own directory, all but where that directory is."""
    facts = asdict(folder) | {"eos_token_ids": sorted(folder.eos_token_ids)}
    del facts["path"]
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (folder.path / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def read_folder(path: Path) -> ModelFolder:
    """The facts that ``write_folder`` put there. Raises ModelUnavailable if they cannot be read."""
    try:
        facts: Mapping[str, Any] = json.loads((path / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        return ModelFolder(path=path, **{**facts, "eos_token_ids": frozenset(facts["eos_token_ids"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelUnavailable(
            f"The converted model in {path} cannot be read ({error}). Remove that folder and try again."
        ) from None
