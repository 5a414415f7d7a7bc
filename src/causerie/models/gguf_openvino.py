"""A GGUF file as an OpenVINO model folder, with weights in a form that the runtime computes faithfully.

OpenVINO GenAI's reader of GGUF takes three architectures, gives 4-bit weights an integer zero point that they do
not have, and passes over in silence what it does not know. So every tensor is decoded here and encoded anew, and
a file with anything that the reader would pass over is refused.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from causerie.errors import MissingExtra
from causerie.models.export import run_export
from causerie.models.folder import WeightForm
from causerie.models.gguf_encode import encode
from causerie.models.gguf_file import GgufFile
from causerie.models.progress import Progress

ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})

_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "vocab_size",
    }
)
_LAYER = r"blk\.\d+\."
_WEIGHTS = {
    "llama": rf"{_LAYER}(attn_norm|ffn_norm|attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)\.weight",
    "qwen2": rf"{_LAYER}((attn_norm|ffn_norm|attn_output|ffn_gate|ffn_up|ffn_down)\.weight|attn_[qkv]\.(weight|bias))",
    "qwen3": rf"{_LAYER}(attn_norm|ffn_norm|attn_q|attn_k|attn_v|attn_output|attn_q_norm|attn_k_norm"
    r"|ffn_gate|ffn_up|ffn_down)\.weight",
}
_SHARED = r"token_embd\.weight|output_norm\.weight|output\.weight|rope_freqs\.weight"


def check_faithful(file: GgufFile) -> None:
    """Raise MissingExtra, with the reason, unless the runtime computes this model as its file says."""
    reason = _unfaithful(file)
    if reason is not None:
        raise MissingExtra(
            f"{file.path.name}: {reason}, which the openvino engine does not compute. The transformers engine may: "
            'pip install "causerie[transformers]", then --engine transformers.'
        )


def _unfaithful(file: GgufFile) -> str | None:
    if file.architecture not in ARCHITECTURES:
        return f"its architecture is {file.architecture!r} (not one of {', '.join(sorted(ARCHITECTURES))})"
    prefix = file.architecture + "."
    for key in file.keys:
        ignored = key.startswith(prefix) and key.removeprefix(prefix) not in _KEYS
        if ignored and file.get(key) not in (0, 0.0, False):
            return f"its metadata has {key}"
    sizes = file.hyperparameters()
    if file.own("attention.value_length", sizes.head_size) != sizes.head_size:
        return "its keys and values differ in size"
    if file.own("rope.dimension_count", sizes.head_size) != sizes.head_size:
        return "only a part of each head is rotated"
    if file.own("rope.scaling.type", "none") not in ("none", "linear"):
        return f"its positions are scaled by {file.own('rope.scaling.type')!r}"
    known = re.compile(f"{_WEIGHTS[file.architecture]}|{_SHARED}")
    for tensor in file.tensors:
        if not known.fullmatch(tensor.name):
            return f"it has a tensor {tensor.name!r}"
    return None


def rope_frequencies(file: GgufFile, *, scaled: bool = True) -> np.ndarray[Any, Any]:
    """The angle, in radians a token, by which each pair of a head's elements is turned."""
    sizes = file.hyperparameters()
    exponents = np.arange(0, sizes.head_size, 2, dtype=np.float64) / sizes.head_size
    frequencies = sizes.rope_base**-exponents
    if scaled:
        for tensor in file.tensors:
            if tensor.name == "rope_freqs.weight":
                frequencies = frequencies / np.asarray(tensor.data, dtype=np.float64)
        if file.own("rope.scaling.type", "none") == "linear":
            frequencies = frequencies / float(file.own("rope.scaling.factor", 1.0))
    return frequencies.astype(np.float32)


def write_openvino(file: GgufFile, form: WeightForm, folder: Path, progress: Progress) -> None:
    """Write ``openvino_model.xml`` and ``.bin`` into ``folder``. Raises ModelUnavailable or MissingExtra."""
    check_faithful(file)
    with tempfile.TemporaryDirectory(dir=folder, prefix="export-") as scratch:
        encoded, exact = Path(scratch) / "model.gguf", Path(scratch) / "exact.npz"
        encode(file, form, encoded, progress)
        vectors = {t.name: np.asarray(t.data, np.float32) for t in file.tensors if len(t.shape) == 1}
        vectors["rope"] = rope_frequencies(file)
        vectors["rope.unscaled"] = rope_frequencies(file, scaled=False)
        np.savez(exact, allow_pickle=False, **vectors)
        progress.note("Building the OpenVINO model…")
        run_export("causerie.models.openvino_export", encoded, exact, folder)
