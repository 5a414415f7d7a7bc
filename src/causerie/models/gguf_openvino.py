"""A GGUF file as an OpenVINO model folder, with weights in a form that the runtime computes faithfully.

OpenVINO GenAI's reader of GGUF takes three architectures, gives 4-bit weights an integer zero point that they do
not have, and passes over in silence what it does not know. So every tensor is decoded here and encoded anew, and
a file with anything that the reader would pass over is refused.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from causerie.models.export import run_export
from causerie.models.folder import WeightForm
from causerie.models.gguf_encode import decode, encode
from causerie.models.gguf_faithful import check_openvino
from causerie.models.gguf_file import GgufFile
from causerie.models.progress import Progress


def rope_frequencies(file: GgufFile, *, scaled: bool = True) -> np.ndarray[Any, Any]:
    """The angle, in radians a token, by which each pair of a head's elements is turned."""
    sizes = file.hyperparameters()
    exponents = np.arange(0, sizes.head_size, 2, dtype=np.float64) / sizes.head_size
    frequencies = sizes.rope_base**-exponents
    if scaled:
        for tensor in file.tensors:
            if tensor.name == "rope_freqs.weight":
                frequencies = frequencies / decode(tensor).astype(np.float64)
        scaling = file.position_scaling()
        if scaling is not None and scaling.kind == "linear":
            frequencies = frequencies / scaling.factor
    return frequencies.astype(np.float32)


def write_openvino(file: GgufFile, form: WeightForm, folder: Path, progress: Progress) -> None:
    """Write ``openvino_model.xml`` and ``.bin`` into ``folder``. Raises ModelUnavailable or MissingExtra."""
    check_openvino(file)
    with tempfile.TemporaryDirectory(dir=folder, prefix="export-") as scratch:
        encoded, exact = Path(scratch) / "model.gguf", Path(scratch) / "exact.npz"
        encode(file, form, encoded, progress)
        vectors = {t.name: decode(t) for t in file.tensors if len(t.shape) == 1}
        vectors["rope"] = rope_frequencies(file)
        vectors["rope.unscaled"] = rope_frequencies(file, scaled=False)
        np.savez(exact, allow_pickle=False, **vectors)
        progress.note("Building the OpenVINO model…")
        run_export("causerie.models.openvino_export", encoded, exact, folder)
