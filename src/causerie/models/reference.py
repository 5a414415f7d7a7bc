"""A model reference, parsed once into what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from causerie.errors import ModelUnavailable

_HUB_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(
    rf"(?:(?:https://)?(?:hf\.co|huggingface\.co)/)?({_HUB_NAME}/{_HUB_NAME})(?::([A-Za-z0-9_.-]+))?/?"
)
_FORMS = (
    "Give a hub id (org/repo, or org/repo:Q4_K_M for one GGUF file of it), a local folder, a local .gguf file, "
    "or 'default'."
)


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """The small model that needs no hub."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository of the Hugging Face hub; with ``quant``, the one GGUF file in it of that quantisation."""

    repo: str
    quant: str | None = None


@dataclass(frozen=True, slots=True)
class LocalFolder:
    path: Path


@dataclass(frozen=True, slots=True)
class LocalGguf:
    path: Path


Reference: TypeAlias = DefaultModel | HubModel | LocalFolder | LocalGguf


def parse_reference(ref: str) -> Reference:
    """Tell what ``ref`` means. What exists on this machine wins over a hub id of the same spelling.

    Raises ModelUnavailable for what can be none of them.
    """
    ref = ref.strip()
    if ref in ("", "default"):
        return DefaultModel()
    if "\0" in ref:
        raise ModelUnavailable(f"A model reference cannot hold a NUL character. {_FORMS}", param="model")
    try:
        path = Path(ref).expanduser()
    except RuntimeError:
        raise ModelUnavailable(
            f"{ref!r} begins with the home of a user who is not here. {_FORMS}", param="model"
        ) from None
    try:
        is_dir, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise ModelUnavailable(f"{ref!r} cannot be looked up: {error.strerror}. {_FORMS}", param="model") from None
    if is_dir:
        return LocalFolder(path.resolve())
    if is_file:
        if path.suffix.lower() == ".gguf":
            return LocalGguf(path.resolve())
        raise ModelUnavailable(f"{ref!r} is a file, but not a .gguf file. {_FORMS}", param="model")
    if path.suffix.lower() == ".gguf" or ref.startswith((".", "/", "~", "\\")):
        raise ModelUnavailable(f"There is no file or folder {ref!r}. {_FORMS}", param="model")
    match = _HUB_ID.fullmatch(ref)
    if match is None or ".." in ref or "--" in match[1]:
        raise ModelUnavailable(f"{ref!r} is not a model reference. {_FORMS}", param="model")
    return HubModel(match[1], match[2])
