"""A GGUF file as a safetensors folder, for the transformers engine."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection
from pathlib import Path

from causerie.errors import MissingExtra
from causerie.models.export import run_export
from causerie.models.gguf_faithful import check_transformers
from causerie.models.gguf_file import GgufFile
from causerie.models.progress import Progress

_NEEDED = ("transformers", "torch", "accelerate", "psutil")


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
    check_transformers(file)
    progress.note("Reading the GGUF file with transformers…")
    run_export("causerie.models.transformers_export", file.path, folder)
    generation = {"eos_token_id": sorted(eos_token_ids)}
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n", encoding="utf-8")
