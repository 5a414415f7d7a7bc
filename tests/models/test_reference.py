"""What a reference means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.errors import ModelUnavailable
from causerie.models.reference import DefaultModel, HubModel, LocalFolder, LocalGguf, Reference, parse_reference


@pytest.mark.parametrize(
    ("ref", "meaning"),
    [
        ("", DefaultModel()),
        ("default", DefaultModel()),
        ("microsoft/DialoGPT-small", HubModel("microsoft/DialoGPT-small")),
        (" org/repo:Q4_K_M ", HubModel("org/repo", "Q4_K_M")),
        ("hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:q8_0", HubModel("bartowski/Llama-3.2-1B-Instruct-GGUF", "q8_0")),
        ("https://huggingface.co/org/repo", HubModel("org/repo")),
    ],
)
def test_a_reference_is_parsed_once_into_what_it_means(ref: str, meaning: Reference) -> None:
    assert parse_reference(ref) == meaning


def test_what_is_here_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "repo").mkdir(parents=True)
    (tmp_path / "m.GGUF").write_bytes(b"")
    assert parse_reference("org/repo") == LocalFolder(tmp_path / "org" / "repo")
    assert parse_reference("m.GGUF") == LocalGguf(tmp_path / "m.GGUF")


@pytest.mark.parametrize(
    "ref",
    ["gpt2", "a/b/c", "a/b:", ":Q4", "./absent", "~/absent", "absent.gguf", "a/../b", "a b/c", "a/b\0", "../x", "é/b"],
)
def test_what_can_be_no_model_says_what_can(ref: str) -> None:
    with pytest.raises(ModelUnavailable, match="hub id") as refused:
        parse_reference(ref)
    assert refused.value.code == "model_unavailable"


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelUnavailable, match=r"not a \.gguf"):
        parse_reference(str(tmp_path / "model.bin"))


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser(ref: str) -> None:
    try:
        parse_reference(ref)
    except ModelUnavailable as error:
        assert error.message


def test_the_home_of_nobody_is_an_error_that_says_so() -> None:
    with pytest.raises(ModelUnavailable, match="home"):
        parse_reference("~no-such-user-here/model.gguf")


def test_a_name_too_long_for_a_file_is_an_error_that_says_so() -> None:
    with pytest.raises(ModelUnavailable, match="too long"):
        parse_reference("x" * 300)
