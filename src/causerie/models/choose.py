"""Which files of a repository make a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Literal

from causerie.errors import MissingExtra, ModelUnavailable
from causerie.models.folder import TEXT_FILES

_COMMON = ("config.json", "generation_config.json", "tokenizer.model", *TEXT_FILES)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_OPENVINO = ("openvino_model.xml", "openvino_model.bin", "causerie.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

MISSING_TRANSFORMERS = (
    'The default install loads GGUF and OpenVINO models; for this one: pip install "causerie[transformers]".'
)


def folder_format(
    names: Sequence[str], engine: str, *, where: str, transformers: bool
) -> Literal["openvino", "safetensors"]:
    """In which form to load a model of which these are the files. ``transformers``: whether that is installed.

    Raises ModelUnavailable, or MissingExtra, if ``engine`` can load none of them.
    """
    has_openvino = "openvino_model.xml" in names
    has_safetensors = any(_matches(name, _SAFETENSORS) for name in names)
    if has_openvino and engine != "transformers":
        return "openvino"
    if has_safetensors and engine != "openvino":
        if not transformers:
            raise MissingExtra(f"{where} holds safetensors. {MISSING_TRANSFORMERS}", param="model")
        return "safetensors"
    raise ModelUnavailable(
        _why_not(names, engine, where, has_openvino=has_openvino, has_safetensors=has_safetensors), param="model"
    )


def _why_not(names: Sequence[str], engine: str, where: str, *, has_openvino: bool, has_safetensors: bool) -> str:
    if has_safetensors:
        return (
            f"{where} holds safetensors, which the openvino engine does not load. Use --engine transformers, or a "
            "GGUF or OpenVINO form of the model."
        )
    if has_openvino:
        return f"{where} holds an OpenVINO model, which only the openvino engine loads. Use --engine openvino."
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs:
        return f"{where} holds GGUF files; name one by its quantisation, as in org/repo:Q4_K_M. {_there(ggufs)}"
    if any(_matches(name, _PICKLES) for name in names):
        return (
            f"{where} holds its weights only as Python pickles, which can run any code when they are loaded and are "
            "refused. Look for a repository of the same model with safetensors."
        )
    return f"{where} holds no model that can be loaded: no safetensors, no openvino_model.xml, no GGUF."


def folder_files(names: Sequence[str], form: Literal["openvino", "safetensors"]) -> list[str]:
    """The files at the top of a repository that belong to its model in ``form``."""
    patterns = _COMMON + (_OPENVINO if form == "openvino" else _SAFETENSORS)
    return [name for name in names if _matches(name, patterns)]


def gguf_file(names: Sequence[str], quant: str, *, where: str) -> str:
    """The one GGUF file of quantisation ``quant``, matched without regard to case.

    Raises ModelUnavailable, naming what is there, if there is none, more than one, or one in parts.
    """
    ggufs = [name for name in names if name.lower().endswith(".gguf") and "mmproj" not in name.lower()]
    tag = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?=[-./]|$)", re.IGNORECASE)
    matching = [name for name in ggufs if tag.search(_PART.sub(".gguf", name))]
    whole = [name for name in matching if not _PART.search(name)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        reason = (
            f"{where} has {len(whole)} GGUF files of {quant}: {', '.join(whole)}. Give one of them as a local file."
        )
    elif matching:
        reason = f"{where} has {quant} only in parts ({matching[0]}, …), which cannot be loaded. {_there(ggufs)}"
    else:
        reason = f"{where} has no GGUF file of {quant}. {_there(ggufs)}"
    raise ModelUnavailable(reason, param="model")


def _there(ggufs: Sequence[str]) -> str:
    whole = [name for name in ggufs if not _PART.search(name)]
    return f"There are: {', '.join(whole)}." if whole else "It has no GGUF file in one part."


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)
