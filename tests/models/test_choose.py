"""Which files of a repository make a model, and what is said of one that has none."""

from __future__ import annotations

import importlib.util

import pytest

from causerie.errors import MissingExtra, ModelUnavailable
from causerie.models.choose import folder_files, folder_format, gguf_file
from causerie.models.gguf_safetensors import has_transformers

QUANTS = ["M-Q4_K_M.gguf", "M-Q4_K_S.gguf", "M-IQ4_XS.gguf", "M-Q8_0.gguf", "mmproj-Q8_0.gguf", "README.md"]
SAFE = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "tokenizer.json", "a.png"]
IR = ["config.json", "openvino_model.xml", "openvino_model.bin", "tokenizer.json"]


@pytest.mark.parametrize("quant", ["Q4_K_M", "q4_k_m", "Q4_k_M"])
def test_a_quantisation_is_matched_without_regard_to_case(quant: str) -> None:
    assert gguf_file(QUANTS, quant, where="org/m") == "M-Q4_K_M.gguf"


@pytest.mark.parametrize("name", ["m.q8_0.gguf", "m_Q8_0.gguf", "Q8_0.gguf", "Q8_0/m-Q8_0.gguf", "m-Q8_0-v2.gguf"])
def test_a_quantisation_is_found_as_publishers_write_it(name: str) -> None:
    assert gguf_file([name, "m-Q4_0.gguf"], "Q8_0", where="org/m") == name


@pytest.mark.parametrize("quant", ["Q4_K", "Q4", "Q2_K", ".*"])
def test_what_is_not_there_is_refused_with_what_is(quant: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"M-Q4_K_M\.gguf, M-Q4_K_S\.gguf"):
        gguf_file(QUANTS, quant, where="org/m")


def test_a_files_whole_name_does_too() -> None:
    assert gguf_file(QUANTS, "M-Q4_K_S.gguf", where="org/m") == "M-Q4_K_S.gguf"


def test_two_that_match_are_both_named() -> None:
    with pytest.raises(ModelUnavailable, match=r"2 GGUF files of Q8_0: a-Q8_0\.gguf, b-Q8_0\.gguf"):
        gguf_file(["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", where="org/m")


def test_a_file_in_parts_is_refused() -> None:
    parts = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q4_0.gguf"]
    with pytest.raises(ModelUnavailable, match=r"only in parts .* There are: m-Q4_0\.gguf"):
        gguf_file(parts, "Q8_0", where="org/m")


@pytest.mark.parametrize(
    ("names", "engine", "installed", "expected"),
    [
        (IR, "auto", False, "openvino"),
        (IR, "openvino", True, "openvino"),
        (SAFE, "auto", True, "safetensors"),
        (SAFE, "transformers", True, "safetensors"),
        ([*SAFE, *IR], "auto", True, "openvino"),
        ([*SAFE, *IR], "transformers", True, "safetensors"),
    ],
)
def test_the_form_follows_the_files_and_the_engine(
    names: list[str], engine: str, installed: bool, expected: str
) -> None:
    assert folder_format(names, engine, where="org/m", transformers=installed) == expected


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_safetensors_without_the_extra_name_it(engine: str) -> None:
    with pytest.raises(MissingExtra, match=r'pip install "causerie\[transformers\]"'):
        folder_format(SAFE, engine, where="org/m", transformers=False)


@pytest.mark.parametrize("absent", ["torch", "transformers", "accelerate", "psutil"])
def test_the_extra_is_installed_only_with_all_that_the_engine_needs(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else object())
    assert not has_transformers()


@pytest.mark.parametrize(
    ("names", "engine", "said"),
    [
        (SAFE, "openvino", "--engine transformers"),
        (IR, "transformers", "--engine openvino"),
        (QUANTS, "auto", r"org/repo:Q4_K_M\. There are: M-Q4_K_M"),
        (["config.json", "pytorch_model.bin"], "auto", "pickles"),
        (["README.md"], "auto", "no model"),
        ([], "auto", "no model"),
    ],
)
def test_what_cannot_be_loaded_says_why(names: list[str], engine: str, said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        folder_format(names, engine, where="org/m", transformers=True)


def test_only_what_the_model_needs_is_fetched() -> None:
    assert folder_files(SAFE, "safetensors") == ["config.json", "model.safetensors", "tokenizer.json"]
    assert folder_files([*IR, "model.safetensors"], "openvino") == IR
