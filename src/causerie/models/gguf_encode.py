"""The weights of a GGUF file in another form, as a GGUF file for OpenVINO GenAI's reader."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from causerie.errors import ModelUnavailable
from causerie.models.gguf_file import GgufFile
from causerie.models.precision import WeightForm
from causerie.models.progress import Progress


def encode(file: GgufFile, form: WeightForm, out: Path, progress: Progress) -> None:
    """Write ``file``'s model to ``out``: matrices in ``form``, vectors in float32, one at a time in memory.

    A tensor that has the form already is copied as it is. The tokenizer written is one of two letters: the
    runtime's own reading of tokenizers is not used, and a model must not fail on it.
    """
    from gguf import GGUFWriter

    with closing(GGUFWriter(out, file.architecture)) as writer:
        _write(writer, file, form, progress)


def _write(writer: Any, file: GgufFile, form: WeightForm, progress: Progress) -> None:
    from gguf import GGML_QUANT_SIZES, LlamaFileType

    writer.add_file_type(LlamaFileType.MOSTLY_F16 if form == "f16" else LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    for key in file.keys:
        if key.startswith(file.architecture + ".") and ".rope.scaling." not in key:
            writer.add_key_value(key, file.get(key), file.value_type(key))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["<e>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template("x")
    tensors = [tensor for tensor in file.tensors if tensor.name != "rope_freqs.weight"]
    kinds = [_kind(tensor, form) for tensor in tensors]
    for tensor, kind in zip(tensors, kinds, strict=True):
        block, size = GGML_QUANT_SIZES[kind]
        shape = [int(length) for length in reversed(tensor.shape)]
        writer.add_tensor_info(
            tensor.name, shape, np.dtype(np.float32), tensor.n_elements // block * size, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with progress.task(f"Converting the weights to {form}", len(tensors), "tensors") as advance:
        for tensor, kind in zip(tensors, kinds, strict=True):
            writer.write_tensor_data(_encoded(tensor, kind))
            advance(1)


def decode(tensor: Any) -> np.ndarray[Any, Any]:
    """The values of a file's tensor, whatever type they are stored in, as float32."""
    from gguf import dequantize

    values: np.ndarray[Any, Any] = dequantize(tensor.data, tensor.tensor_type)
    return values


def _kind(tensor: Any, form: WeightForm) -> Any:
    """Q8_0 holds blocks of 32 along a row; a matrix that they do not divide is kept in float16."""
    from gguf import GGMLQuantizationType

    if len(tensor.shape) < 2:
        return GGMLQuantizationType.F32
    if form == "q8_0" and int(tensor.shape[0]) % 32 == 0:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F16


def _encoded(tensor: Any, kind: Any) -> np.ndarray[Any, Any]:
    from gguf import quantize

    if tensor.tensor_type == kind:
        return np.ascontiguousarray(tensor.data)
    with np.errstate(over="ignore"):
        encoded: np.ndarray[Any, Any] = quantize(decode(tensor), kind)
    if encoded.dtype == np.float16 and not np.isfinite(encoded).all():
        raise ModelUnavailable(
            f"The weights {tensor.name!r} hold values beyond float16's range, so the openvino engine cannot load them. "
            'Use the transformers engine: pip install "causerie[transformers]", then --engine transformers.'
        )
    return encoded
