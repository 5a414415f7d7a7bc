"""The import of a real model, killed in the middle and run twice at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from causerie.models.resolve import resolve
from tests.support.tiny_models import tiny_decoder, write_tiny_gguf

PROGRAM = """
import sys
from causerie.models.resolve import resolve
from causerie.models.progress import StderrProgress
print(resolve(sys.argv[1], form="f16", engine="auto", progress=StderrProgress()).fingerprint)
"""


def start(path: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        env=os.environ | {"CAUSERIE_CACHE": str(cache.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def converted(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name != ".locks"]


def test_killed_while_converting_leaves_nothing_half_made(cache: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", model=tiny_decoder(num_hidden_layers=4))
    with start(tmp_path / "m.gguf", cache) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Converting")
        process.kill()
        process.wait(10)
    assert all(path.name.endswith(".partial") for path in converted(cache))

    folder = resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto")
    assert converted(cache) == [folder.path]
    assert (folder.path / "openvino_model.bin").stat().st_size > 0


def test_two_imports_at_once_give_one_folder(cache: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    with start(tmp_path / "m.gguf", cache) as first, start(tmp_path / "m.gguf", cache) as second:
        said = [process.communicate(timeout=90) for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), said
    assert said[0][0] == said[1][0]
    assert sum("Converting" in errors for _, errors in said) == 1
    assert len(converted(cache)) == 1


def test_a_converted_model_is_found_again_at_once(cache: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    first = resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto")
    started = time.perf_counter()
    assert resolve(str(tmp_path / "m.gguf"), form="f16", engine="auto") == first
    assert time.perf_counter() - started < 0.5
    assert resolve(str(tmp_path / "m.gguf"), form="q8_0", engine="auto").path != first.path
