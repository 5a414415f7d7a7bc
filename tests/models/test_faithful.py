"""The converted model computes what the file's weights say, and what it would not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import openvino
import pytest
import torch
from gguf import GGMLQuantizationType

from causerie.errors import MissingExtra, ModelUnavailable
from causerie.models.folder import WeightForm
from causerie.models.gguf_file import GgufFile
from causerie.models.resolve import resolve
from tests.support.tiny_models import VOCABULARY, tiny_decoder, write_tiny_gguf

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
EXACT = 0.002
"""Bound on a difference of log-probabilities that summation's order alone explains."""
ROUNDED = 0.1
"""The same where float16 does not have the decoded values exactly."""
FAR = 1200
"""Positions at which a rotary frequency rounded to float16 has turned far enough to be seen."""


def logits(folder: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    """The exported model's logits at every position, computed in float32."""
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", FLOAT32)
    tokens = np.array([ids], dtype=np.int64)
    inputs = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
    result: np.ndarray[Any, Any] = compiled(inputs)["logits"][0]
    return result


def worst(model: Any, folder: Path) -> float:
    """The largest difference between log-probabilities, over a long text."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, FAR).tolist()
    with torch.no_grad():
        expected = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
    actual = torch.log_softmax(torch.tensor(logits(folder, ids)).double(), dim=-1)
    return float((expected - actual).abs().max())


def decoded_from(quant: GGMLQuantizationType) -> Any:
    """A model whose matrices hold what ``quant`` keeps of them."""
    model = tiny_decoder()
    for weight in model.parameters():
        if weight.dim() == 2:
            decoded = gguf.dequantize(gguf.quantize(weight.detach().numpy(), quant), quant)
            weight.data = torch.tensor(decoded.reshape(weight.shape))
    return model


def llama3_frequencies(head: int = 16) -> np.ndarray[Any, Any]:
    """Divisors of the kind that Llama 3.1 has: none for the fast pairs, 8 for the slow."""
    return np.geomspace(1.0, 8.0, head // 2).astype(np.float32)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_float16_form_computes_the_files_weights(kind: str, tmp_path: Path, cache: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", model=tiny_decoder(kind))
    folder = resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto")
    assert folder.format == "openvino"
    assert worst(model, folder.path) < EXACT


def test_tied_embeddings_are_the_output_too(tmp_path: Path, cache: Path) -> None:
    model = tiny_decoder(tie_word_embeddings=True)
    write_tiny_gguf(tmp_path / "m.gguf", model=model, leave_out=("lm_head.weight",))
    folder = resolve(str(tmp_path / "m.gguf"), form="f16", engine="openvino")
    assert worst(model, folder.path) < EXACT


@pytest.mark.parametrize(
    ("quant", "form", "bound"),
    [
        (GGMLQuantizationType.Q8_0, "q8_0", EXACT),
        (GGMLQuantizationType.Q4_1, "f16", ROUNDED),
        (GGMLQuantizationType.Q4_0, "f16", ROUNDED),
        (GGMLQuantizationType.BF16, "f16", EXACT),
    ],
)
def test_quantised_weights_are_computed_as_the_file_has_them(
    quant: GGMLQuantizationType, form: WeightForm, bound: float, tmp_path: Path, cache: Path
) -> None:
    model = decoded_from(quant)
    write_tiny_gguf(tmp_path / "m.gguf", model=model, quant=quant)
    folder = resolve(str(tmp_path / "m.gguf"), form=form, engine="openvino")
    assert worst(model, folder.path) < bound


def scaling(**values: Any) -> dict[str, Any]:
    return {f"llama__rope__scaling__{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(scaling(type="linear", factor=4.0), id="linear"),
        pytest.param(scaling(factor=4.0), id="no type is linear"),
    ],
)
def test_linear_position_scaling_is_kept(keys: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    model = tiny_decoder(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    write_tiny_gguf(tmp_path / "m.gguf", model=model, **keys)
    folder = resolve(str(tmp_path / "m.gguf"), form="f16", engine="openvino")
    assert worst(model, folder.path) < EXACT


@pytest.mark.parametrize("keys", [scaling(type="none", factor=4.0), scaling(type="linear"), scaling(factor=0.0)])
def test_scaling_that_is_none_is_none(keys: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", **keys)
    assert GgufFile(tmp_path / "m.gguf").position_scaling() is None


def test_vectors_in_bfloat16_are_decoded(tmp_path: Path, cache: Path) -> None:
    model = tiny_decoder()
    norm = model.model.norm.weight
    norm.data = norm.data.bfloat16().float()
    model.model.rotary_emb.inv_freq /= torch.tensor(llama3_frequencies()).bfloat16().float()
    vectors = {"output_norm.weight": norm.detach().numpy(), "rope_freqs.weight": llama3_frequencies()}
    bf16 = GGMLQuantizationType.BF16
    write_tiny_gguf(
        tmp_path / "m.gguf",
        model=model,
        leave_out=("model.norm.weight",),
        tensors={name: (gguf.quantize(values, bf16), bf16) for name, values in vectors.items()},
    )
    folder = resolve(str(tmp_path / "m.gguf"), form="f16", engine="openvino")
    assert worst(model, folder.path) < EXACT


@pytest.mark.parametrize("form", ["f16", "q8_0"])
def test_llama3_frequency_divisors_are_kept(form: WeightForm, tmp_path: Path, cache: Path) -> None:
    quant = GGMLQuantizationType.F16 if form == "f16" else GGMLQuantizationType.Q8_0
    model = decoded_from(quant)
    model.model.rotary_emb.inv_freq /= torch.tensor(llama3_frequencies())
    write_tiny_gguf(tmp_path / "m.gguf", model=model, quant=quant, tensors={"rope_freqs.weight": llama3_frequencies()})
    folder = resolve(str(tmp_path / "m.gguf"), form=form, engine="openvino")
    assert worst(model, folder.path) < EXACT


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"tensors": {"output.bias": np.zeros(VOCABULARY, np.float32)}}, "output.bias"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "attn_q.bias"),
        ({"llama__rope__dimension_count": 8}, "rotated"),
        ({"llama__attention__sliding_window": 512}, "sliding_window"),
        ({"llama__attention__value_length": 8}, "values"),
        ({"general__architecture": "phi3"}, "phi3"),
    ],
)
def test_what_the_runtime_passes_over_is_refused(
    extra: dict[str, Any], names: str, tmp_path: Path, cache: Path
) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", **extra)
    with pytest.raises(MissingExtra, match=names) as refused:
        resolve(str(tmp_path / "m.gguf"), form="f16", engine="openvino")
    assert 'pip install "causerie[transformers]"' in str(refused.value)
    assert not list(cache.glob("m--*"))


def test_weights_beyond_float16_are_refused(tmp_path: Path, cache: Path) -> None:
    model = tiny_decoder()
    model.lm_head.weight.data[0, 0] = 1e6
    write_tiny_gguf(tmp_path / "m.gguf", model=model)
    with pytest.raises(ModelUnavailable, match="float16"):
        resolve(str(tmp_path / "m.gguf"), form="f16", engine="openvino")


@pytest.mark.slow
@pytest.mark.parametrize("quant", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0])
def test_transformers_folder_holds_the_same_weights(quant: GGMLQuantizationType, tmp_path: Path, cache: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = decoded_from(quant)
    write_tiny_gguf(tmp_path / "m.gguf", model=model, quant=quant)
    folder = resolve(str(tmp_path / "m.gguf"), form="f16", engine="transformers")
    assert folder.format == "safetensors"
    loaded = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert set(loaded.generation_config.eos_token_id) == folder.eos_token_ids
    assert (folder.path / "chat_template.jinja").is_file()


def test_transformers_reader_is_not_given_what_it_leaves_out(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", tensors={"rope_freqs.weight": llama3_frequencies()})
    with pytest.raises(ModelUnavailable, match="rope_freqs"):
        resolve(str(tmp_path / "m.gguf"), form="f16", engine="transformers")


@pytest.mark.parametrize(
    ("keys", "engine", "remedy"),
    [
        (scaling(type="yarn", factor=4.0), "openvino", "with safetensors"),
        (scaling(type="yarn", factor=4.0), "auto", "with safetensors"),
        (scaling(type="yarn", factor=4.0), "transformers", "with safetensors"),
        (scaling(type="linear", factor=4.0), "transformers", "Use --engine openvino"),
        (scaling(factor=4.0), "transformers", "Use --engine openvino"),
        ({"llama__rope__scale_linear": 4.0}, "auto", "with safetensors"),
        (scaling(factor=4.0) | {"llama__attention__sliding_window": 512}, "auto", "with safetensors"),
        (scaling(factor=4.0) | {"llama__attention__sliding_window": 512}, "transformers", "with safetensors"),
    ],
)
def test_scaled_positions_are_never_lost_and_no_engine_is_named_that_loses_them(
    keys: dict[str, Any], engine: str, remedy: str, tmp_path: Path, cache: Path
) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", **keys)
    with pytest.raises(ModelUnavailable, match=r"positions are scaled") as refused:
        resolve(str(tmp_path / "m.gguf"), form="f16", engine=engine)
    assert not isinstance(refused.value, MissingExtra)
    assert remedy in refused.value.message
    assert not list(cache.glob("m--*"))


@pytest.mark.slow
def test_auto_takes_transformers_where_openvino_is_not_faithful(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", llama__attention__sliding_window=512)
    assert resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto").format == "safetensors"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100])
def test_what_is_no_gguf_is_said_to_be_none(content: bytes, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"m\.gguf"):
        resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto")


def test_a_truncated_gguf_is_said_to_be_incomplete(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelUnavailable, match="not all of it"):
        resolve(str(path), form="f16", engine="auto")


def test_a_failing_export_names_the_reason(tmp_path: Path) -> None:
    from causerie.models.export import run_export

    with pytest.raises(ModelUnavailable, match="absent"):
        run_export("causerie.models.openvino_export", tmp_path / "absent.gguf", tmp_path / "absent.npz", tmp_path)
