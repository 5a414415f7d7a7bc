"""From a model reference to a folder that an engine can load: fetch, convert once, describe."""

from __future__ import annotations

from pathlib import Path

from causerie.models.cache import cache_root, folder_name, make_once
from causerie.models.default import NAME, SHA256, fetch_default
from causerie.models.folder import ModelFolder, WeightForm, read_folder, write_folder
from causerie.models.gguf_file import GgufFile
from causerie.models.gguf_openvino import write_openvino
from causerie.models.gguf_tokenizer import write_tokenizer
from causerie.models.progress import Progress, Silent
from causerie.models.reference import DefaultModel, parse_reference

CONVERSION = 1
"""Part of a converted folder's name: raised when the conversion changes, so that old results are not used."""


def resolve(ref: str, *, form: WeightForm, engine: str, progress: Progress | None = None) -> ModelFolder:
    """Fetch what ``ref`` names if it is not here, convert it once if it has to be, and describe the folder.

    ``form`` is that of weights converted for OpenVINO; ``engine`` is ``auto``, ``openvino`` or
    ``transformers``. Takes seconds to minutes the first time. Raises ModelUnavailable, or MissingExtra where
    an extra of this package could load it.
    """
    progress = progress or Silent()
    reference = parse_reference(ref)
    assert isinstance(reference, DefaultModel)
    root = cache_root()
    target = root / folder_name(NAME, form, SHA256[:12], f"v{CONVERSION}")

    def make(folder: Path) -> None:
        file = GgufFile(fetch_default(root, progress))
        facts = write_tokenizer(file, folder)
        write_openvino(file, form, folder, progress)
        sizes = file.hyperparameters()
        write_folder(
            ModelFolder(
                path=folder,
                name=NAME,
                format="openvino",
                architecture=file.architecture,
                context_window=sizes.context_window,
                eos_token_ids=facts.eos_token_ids,
                bos_token_id=facts.bos_token_id,
                kv_bytes_per_token=sizes.kv_bytes_per_token,
                vocab_size=sizes.vocab_size,
                fingerprint=SHA256,
            )
        )

    return read_folder(make_once(target, make, progress))
