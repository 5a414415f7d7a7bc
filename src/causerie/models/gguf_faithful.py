"""Which GGUF files an engine computes as they say. What a runtime's reader would pass over in silence is refused."""

from __future__ import annotations

import re

from causerie.errors import MissingExtra, ModelUnavailable
from causerie.models.gguf_file import GgufFile

_SAFETENSORS = "Take the model's repository with safetensors instead, with --engine transformers."

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


def check_openvino(file: GgufFile) -> None:
    """Raise ModelUnavailable, with the reason, unless the openvino engine computes this model as its file says.

    It is MissingExtra if the transformers engine may.
    """
    reason = _unfaithful(file)
    if reason is None:
        return
    refused = f"{file.path.name}: {reason}, which the openvino engine does not compute"
    if (left_out := _left_out(file)) is not None:
        also = "and" if left_out == reason else f"and {left_out}, which"
        raise ModelUnavailable(f"{refused}, {also} transformers' reader of GGUF leaves out. {_SAFETENSORS}")
    raise MissingExtra(
        f'{refused}. The transformers engine may: pip install "causerie[transformers]", then --engine transformers.'
    )


def check_transformers(file: GgufFile) -> None:
    """Raise ModelUnavailable, with the reason, if transformers' reader of GGUF passes over a part of this model."""
    if (left_out := _left_out(file)) is not None:
        remedy = "Use --engine openvino." if _unfaithful(file) is None else _SAFETENSORS
        raise ModelUnavailable(f"{file.path.name}: {left_out}, which transformers' reader of GGUF leaves out. {remedy}")


def _left_out(file: GgufFile) -> str | None:
    """It maps no key of any architecture's position scaling, and no tensor of frequencies."""
    if any(tensor.name == "rope_freqs.weight" for tensor in file.tensors):
        return "its positions are scaled by frequency (rope_freqs.weight)"
    scaling = file.position_scaling()
    return None if scaling is None else f"its positions are scaled ({scaling.kind})"


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
    scaling = file.position_scaling()
    if scaling is not None and scaling.kind != "linear":
        return f"its positions are scaled ({scaling.kind})"
    known = re.compile(f"{_WEIGHTS[file.architecture]}|{_SHARED}")
    for tensor in file.tensors:
        if not known.fullmatch(tensor.name):
            return f"it has a tensor {tensor.name!r}"
    return None
