"""Models of the hub, from a small one on this machine: fetched, converted, used again without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from causerie.errors import ModelUnavailable
from causerie.models.resolve import resolve
from tests.support.hub import LocalHub, pointed_at
from tests.support.tiny_models import write_tiny_gguf, write_tiny_gpt2, write_tiny_llama

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nothing listens there, so a connection is refused at once."""


def test_safetensors_without_tokenizer_json_as_dialogpt_has_it(used_hub: LocalHub, tmp_path: Path) -> None:
    write_tiny_gpt2(tmp_path / "repo", tokenizer_json=False, context=256)
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"not wanted")
    (tmp_path / "repo" / "README.md").write_text("not wanted")
    used_hub.add("org/dialog", tmp_path / "repo")

    folder = resolve("org/dialog", form="f16", engine="auto")

    assert (folder.name, folder.format, folder.architecture) == ("org/dialog", "safetensors", "gpt2")
    assert (folder.context_window, folder.vocab_size) == (256, 352)
    assert folder.eos_token_ids == {0}
    assert folder.bos_token_id is None
    assert folder.kv_bytes_per_token == 2 * 2 * 32 * 2
    got = {path.name for path in folder.path.iterdir()}
    assert got == {"config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt"}


def test_a_second_use_needs_no_network_and_downloads_nothing(used_hub: LocalHub, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "repo")
    used_hub.add("org/llama", tmp_path / "repo")
    first = resolve("org/llama", form="f16", engine="auto")
    used_hub.requests.clear()
    assert resolve("org/llama", form="f16", engine="auto") == first
    assert not [request for request in used_hub.requests if request.startswith("GET /org/")]
    with pointed_at(NOWHERE, tmp_path / "hf"):
        assert resolve("org/llama", form="f16", engine="auto") == first


def test_one_gguf_of_a_repository_is_fetched_and_converted(used_hub: LocalHub, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "repo" / "Tiny-Q4_K_M.gguf")
    write_tiny_gguf(tmp_path / "repo" / "Tiny-Q8_0.gguf")
    used_hub.add("org/Tiny-GGUF", tmp_path / "repo")

    folder = resolve("org/Tiny-GGUF:q4_k_m", form="f16", engine="auto")

    assert (folder.name, folder.format, folder.architecture) == ("org/Tiny-GGUF:Q4_K_M", "openvino", "llama")
    assert (folder.path / "openvino_model.bin").is_file()
    assert "GET /org/Tiny-GGUF/resolve/main/Tiny-Q8_0.gguf" not in used_hub.requests
    assert not [request for request in used_hub.requests if "GET" in request and "Q8_0" in request]
    assert resolve("org/Tiny-GGUF:Q4_K_M", form="f16", engine="auto") == folder
    with pointed_at(NOWHERE, tmp_path / "hf"):
        assert resolve("org/Tiny-GGUF:q4_k_m", form="f16", engine="auto") == folder


def test_a_new_version_of_a_gguf_is_converted_again(used_hub: LocalHub, tmp_path: Path) -> None:
    path = tmp_path / "repo" / "Tiny-F16.gguf"
    write_tiny_gguf(path)
    used_hub.add("org/tiny", tmp_path / "repo")
    old = resolve("org/tiny:F16", form="f16", engine="auto")
    write_tiny_gguf(path, llama__context_length=512)
    new = resolve("org/tiny:F16", form="f16", engine="auto")
    assert (old.context_window, new.context_window) == (2048, 512)
    assert old.fingerprint != new.fingerprint


def test_an_openvino_folder_is_used_as_it_is(used_hub: LocalHub, cache: Path, tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf")
    made = resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto")
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin", "tokenizer.json", "tokenizer_config.json"):
        (repo / name).write_bytes((made.path / name).read_bytes())
    model.config.save_pretrained(repo)
    used_hub.add("org/ir", repo)

    for ref in ("org/ir", str(repo)):
        folder = resolve(ref, form="f16", engine="auto")
        assert (folder.format, folder.architecture) == ("openvino", "llama")
        assert folder.eos_token_ids == {2}
        assert folder.kv_bytes_per_token == made.kv_bytes_per_token


def test_a_converted_folder_may_be_named_as_a_local_one(cache: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    made = resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto")
    assert resolve(str(made.path), form="f16", engine="auto") == made


def test_no_network_and_no_cache_says_what_to_do_at_once(cache: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    with (
        pointed_at(NOWHERE, tmp_path / "hf"),
        pytest.raises(ModelUnavailable, match="cannot be reached") as refused,
    ):
        resolve("org/absent", form="f16", engine="auto")
    assert time.perf_counter() - started < 10
    assert "local folder" not in refused.value.message and "network" in refused.value.message


def test_a_repository_that_is_not_there_is_said_to_be_missing(used_hub: LocalHub) -> None:
    with pytest.raises(ModelUnavailable, match=r"no model org/absent.*HF_TOKEN"):
        resolve("org/absent", form="f16", engine="auto")


def test_a_gated_repository_says_how_to_get_in(used_hub: LocalHub, tmp_path: Path) -> None:
    write_tiny_gpt2(tmp_path / "repo")
    used_hub.add("org/gated", tmp_path / "repo")
    used_hub.gated.add("org/gated")
    with pytest.raises(ModelUnavailable, match=r"gated.*HF_TOKEN"):
        resolve("org/gated", form="f16", engine="auto")


def test_pickles_are_refused_before_they_are_fetched(used_hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_text("{}")
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    used_hub.add("org/pickle", tmp_path / "repo")
    with pytest.raises(ModelUnavailable, match="pickles"):
        resolve("org/pickle", form="f16", engine="auto")
    assert not [request for request in used_hub.requests if "resolve" in request]


def test_a_model_of_which_a_part_is_missing_is_refused(cache: Path, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "repo")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "repo" / "model.safetensors").rename(tmp_path / "repo" / "model-00001-of-00002.safetensors")
    (tmp_path / "repo" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match=r"model-00002-of-00002\.safetensors"):
        resolve(str(tmp_path / "repo"), form="f16", engine="auto")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_without_what_is_needed_names_it(missing: str, cache: Path, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "repo")
    (tmp_path / "repo" / missing).unlink()
    with pytest.raises(ModelUnavailable, match=missing):
        resolve(str(tmp_path / "repo"), form="f16", engine="auto")


@pytest.mark.parametrize("content", ["{", "[]", '{"vocab_size": "many"}'])
def test_a_broken_config_is_refused(content: str, cache: Path, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "repo")
    (tmp_path / "repo" / "config.json").write_text(content)
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        resolve(str(tmp_path / "repo"), form="f16", engine="auto")


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "special_tokens_map.json"])
def test_the_fingerprint_follows_the_text_files(name: str, cache: Path, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "repo")
    old = resolve(str(tmp_path / "repo"), form="f16", engine="auto")
    (tmp_path / "repo" / name).write_text("{}")
    assert resolve(str(tmp_path / "repo"), form="f16", engine="auto").fingerprint != old.fingerprint


def test_another_process_obeys_hf_endpoint(hub: LocalHub, tmp_path: Path) -> None:
    write_tiny_gpt2(tmp_path / "repo")
    hub.add("org/tiny", tmp_path / "repo")
    program = (
        "from causerie.models.resolve import resolve\n"
        "from causerie.models.progress import StderrProgress\n"
        "print(resolve('org/tiny', form='f16', engine='auto', progress=StderrProgress()).name)"
    )
    environment = os.environ | hub.environment(tmp_path / "hf") | {"CAUSERIE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "org/tiny\n"
    assert done.stderr.startswith("Fetching org/tiny (")
    assert "\r" not in done.stderr
