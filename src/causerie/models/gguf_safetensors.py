"""A GGUF file as a safetensors folder, for the transformers engine."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection
from pathlib import Path

from causerie.errors import MissingExtra, ModelUnavailable
from causerie.models.export import run_export
from causerie.models.gguf_file import GgufFile
from causerie.models.progress import Progress

_NEEDED = ("transformers", "torch", "accelerate")


def has_transformers() -> bool:
    """Whether the extra ``transformers`` is installed."""
    return all(importlib.util.find_spec(module) is not None for module in _NEEDED)


def write_safetensors(file: GgufFile, eos_token_ids: Collection[int], folder: Path, progress: Progress) -> None:
    """Write weights, ``config.json`` and ``generation_config.json`` into ``folder``.

    Raises MissingExtra without transformers, and ModelUnavailable for what it does not read faithfully.
    """
    if not has_transformers():
        raise MissingExtra(
            f"The transformers engine is not installed, so it cannot load {file.path.name}: "
            'pip install "causerie[transformers]".'
        )
    if any(tensor.name == "rope_freqs.weight" for tensor in file.tensors):
        raise ModelUnavailable(
            f"{file.path.name} scales its positions by frequency (rope_freqs.weight), which transformers' reader of "
            "GGUF leaves out. Use --engine openvino, or the repository with safetensors."
        )
    progress.note("Reading the GGUF file with transformers…")
    run_export("causerie.models.transformers_export", file.path, folder)
    generation = {"eos_token_id": sorted(eos_token_ids)}
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n", encoding="utf-8")
