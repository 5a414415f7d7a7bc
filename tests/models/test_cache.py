"""A folder of the cache is whole or not there, whoever dies or hurries."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from causerie.errors import ModelUnavailable
from causerie.models.cache import cache_root, folder_name, make_once
from causerie.models.progress import Silent

PROGRAM = """
import sys, time
from pathlib import Path
from causerie.models.cache import make_once
from causerie.models.progress import StderrProgress

target, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def make(folder):
    with log.open("a") as file:
        file.write("made\\n")
    (folder / "first").write_text("1")
    print("half", flush=True)
    time.sleep(seconds)
    (folder / "second").write_text("2")

make_once(target, make, StderrProgress())
print("done", flush=True)
"""


def start(target: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(target), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


def test_killed_in_the_middle_leaves_nothing_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    with start(target, log, 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert not target.exists()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert len([name for name in names(tmp_path) if name.endswith(".partial")]) == 1

    make_once(target, lambda folder: (folder / "whole").touch(), Silent())
    assert names(tmp_path) == ["log", "model"]
    assert names(target) == ["whole"]


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    with start(target, log, 1) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "half\n"
        with start(target, log, 1) as second:
            said = second.communicate(timeout=30)
        assert first.communicate(timeout=30)[0] == "done\n"
    assert said[0] == "done\n"
    assert "waiting for it" in said[1]
    assert log.read_text() == "made\n"
    assert names(target) == ["first", "second"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ModelUnavailable("no")

    with pytest.raises(ModelUnavailable, match="no"):
        make_once(tmp_path / "model", fail, Silent())
    assert names(tmp_path) == []


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    make_once(tmp_path / "model", lambda folder: None, Silent())
    started = time.perf_counter()
    make_once(tmp_path / "model", lambda folder: pytest.fail("made twice"), Silent())
    assert time.perf_counter() - started < 1


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnavailable, match="CAUSERIE_CACHE"):
        make_once(tmp_path / "file" / "model", lambda folder: None, Silent())


def write_into_a_full_disk(_: Path) -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")


def write_an_array_into_a_full_disk(_: Path) -> None:
    np.zeros(100_000).tofile("/dev/full")


@pytest.mark.parametrize("make", [write_into_a_full_disk, write_an_array_into_a_full_disk])
def test_a_full_disk_is_said_to_be_the_caches(make: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"cannot be written.*Free some space"):
        make_once(tmp_path / "model", make, Silent())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ENOENT])
def test_other_errors_are_not_said_to_be_the_caches(number: int, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(folder / "somewhere"))

    with pytest.raises(ModelUnavailable, match=re.escape(os.strerror(number))) as refused:
        make_once(tmp_path / "model", fail, Silent())
    assert "cache" not in refused.value.message and str(tmp_path) not in refused.value.message
    assert names(tmp_path) == []


def test_cache_is_where_the_user_keeps_caches(tmp_path: Path) -> None:
    assert cache_root({"CAUSERIE_CACHE": str(tmp_path)}) == tmp_path / "models"
    assert cache_root({"XDG_CACHE_HOME": "/x"}) == Path("/x/causerie/models")
    assert cache_root({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/causerie/models"
    assert cache_root({}) == Path.home() / ".cache/causerie/models"


def test_a_folders_name_never_leaves_the_cache() -> None:
    assert folder_name("../../etc", "a/b:c", "..") == "etc--a-b-c--"
