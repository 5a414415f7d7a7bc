"""From a model reference to a folder that an engine can load: fetch, convert once, describe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from causerie.errors import MissingExtra
from causerie.models import default, hub
from causerie.models.cache import cache_root, folder_name, make_once
from causerie.models.choose import folder_files, folder_format, gguf_file
from causerie.models.folder import ModelFolder, WeightForm, read_folder, write_folder
from causerie.models.gguf_file import GgufFile
from causerie.models.gguf_openvino import write_openvino
from causerie.models.gguf_safetensors import has_transformers, write_safetensors
from causerie.models.gguf_tokenizer import write_tokenizer
from causerie.models.hf_folder import describe_folder
from causerie.models.progress import Progress, Silent
from causerie.models.reference import DefaultModel, HubModel, LocalFolder, LocalGguf, parse_reference

CONVERSION = 2
"""Part of a converted folder's name: raised when the conversion changes, so that old results are not used."""


@dataclass(frozen=True, slots=True)
class _Gguf:
    """A GGUF file that may have to be fetched; ``identity`` changes when its content does."""

    name: str
    identity: str
    fetch: Callable[[], Path]


def resolve(ref: str, *, form: WeightForm, engine: str, progress: Progress | None = None) -> ModelFolder:
    """Fetch what ``ref`` names if it is not here, convert it once if it has to be, and describe the folder.

    ``form`` is that of weights converted for OpenVINO; ``engine`` is ``auto``, ``openvino`` or
    ``transformers``. Takes seconds to minutes the first time. Raises ModelUnavailable, or MissingExtra where
    an extra of this package could load it.
    """
    progress = progress or Silent()
    root = cache_root()
    match parse_reference(ref):
        case DefaultModel():
            fetch = lambda: default.fetch_default(root, progress)  # noqa: E731
            gguf = _Gguf(default.NAME, default.SHA256, fetch)
        case LocalGguf(path):
            gguf = _local_gguf(path)
        case HubModel(repo, None):
            return _hub_folder(repo, engine, progress)
        case HubModel(repo, quant):
            gguf = _hub_gguf(repo, quant or "", progress)
        case LocalFolder(path):
            return _local_folder(path, engine)
    return _converted(gguf, form, engine, root, progress)


def _local_folder(path: Path, engine: str) -> ModelFolder:
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    kind = folder_format(names, engine, where=str(path), transformers=has_transformers())
    return describe_folder(path, path.name, kind)


def _hub_folder(repo: str, engine: str, progress: Progress) -> ModelFolder:
    def choose(names: hub.Names) -> hub.Names:
        return folder_files(names, kind(names))

    def kind(names: hub.Names) -> Literal["openvino", "safetensors"]:
        return folder_format(names, engine, where=repo, transformers=has_transformers())

    path, wanted = hub.fetch(repo, choose, progress)
    return describe_folder(path, repo, kind(wanted))


def _hub_gguf(repo: str, quant: str, progress: Progress) -> _Gguf:
    path, wanted = hub.fetch(repo, lambda names: [gguf_file(names, quant, where=repo)], progress)
    file = path / wanted[0]
    quant = quant if quant.lower().endswith(".gguf") else quant.upper()
    # The hub's cache keeps a file under its content's hash and links to it.
    return _Gguf(f"{repo}:{quant}", f"{wanted[0]} {file.resolve().name} {file.stat().st_size}", lambda: file)


def _local_gguf(path: Path) -> _Gguf:
    status = path.stat()
    return _Gguf(path.stem, f"{path} {status.st_size} {status.st_mtime_ns}", lambda: path)


def _converted(gguf: _Gguf, form: WeightForm, engine: str, root: Path, progress: Progress) -> ModelFolder:
    """The folder made of a GGUF file. ``auto`` takes openvino, or transformers where openvino is not faithful."""
    if engine == "transformers":
        return _converted_to(gguf, "safetensors", form, root, progress)
    try:
        return _converted_to(gguf, "openvino", form, root, progress)
    except MissingExtra as error:
        if engine == "openvino" or not has_transformers():
            raise
        progress.note(f"{error} It is installed, so it is used.")
        return _converted_to(gguf, "safetensors", form, root, progress)


def _converted_to(
    gguf: _Gguf, kind: Literal["openvino", "safetensors"], form: WeightForm, root: Path, progress: Progress
) -> ModelFolder:
    variant = form if kind == "openvino" else "f32"
    digest = hashlib.sha256(gguf.identity.encode()).hexdigest()
    target = root / folder_name(gguf.name, kind, variant, digest[:12], f"v{CONVERSION}")

    def make(folder: Path) -> None:
        file = GgufFile(gguf.fetch())
        facts = write_tokenizer(file, folder)
        if kind == "openvino":
            write_openvino(file, form, folder, progress)
        else:
            write_safetensors(file, facts.eos_token_ids, folder, progress)
        sizes = file.hyperparameters()
        write_folder(
            ModelFolder(
                path=folder,
                name=gguf.name,
                format=kind,
                architecture=file.architecture,
                context_window=sizes.context_window,
                eos_token_ids=facts.eos_token_ids,
                bos_token_id=facts.bos_token_id,
                kv_bytes_per_token=sizes.kv_bytes_per_token,
                vocab_size=sizes.vocab_size,
                fingerprint=hashlib.sha256(f"{target.name} {gguf.identity}".encode()).hexdigest(),
            )
        )

    return read_folder(make_once(target, make, progress))
