"""What installs this: the constraints, the environments and the system packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from causerie import __version__

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run_script(name: str, *arguments: str, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of ``scripts/`` with nothing on the PATH but ``path`` and the shell's everyday tools."""
    for tool in ("sh", "basename", "dirname", "id", "rm"):
        found = shutil.which(tool)
        assert found is not None
        (path / tool).unlink(missing_ok=True)
        (path / tool).symlink_to(found)
    return subprocess.run(
        [ROOT / "scripts" / name, *arguments],
        env={"PATH": str(path), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_version_is_said_once() -> None:
    assert PROJECT["project"]["version"] == __version__


def test_constraints_are_plain_pins() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins())


def test_every_direct_dependency_is_pinned() -> None:
    project = PROJECT["project"]
    wanted: Iterable[str] = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
        *PROJECT["dependency-groups"]["dev"],
    ]
    assert {name_of(each) for each in wanted} - {name_of(pin) for pin in pins()} <= {"pip"}


def test_the_default_install_is_light() -> None:
    assert not {name_of(each) for each in PROJECT["project"]["dependencies"]} & {"torch", "transformers", "ray"}


def test_the_lock_of_node_packages_names_no_registry_and_pins_what_is_asked() -> None:
    text = (ROOT / "tests" / "node" / "package-lock.json").read_text(encoding="utf-8")
    assert "://" not in text and '"resolved"' not in text
    asked = json.loads((ROOT / "tests" / "node" / "package.json").read_text(encoding="utf-8"))["dependencies"]
    packages = json.loads(text)["packages"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked} == asked
    assert all("integrity" in package for path, package in packages.items() if path)


@pytest.mark.parametrize("fails", ["update", "install"])
def test_system_packages_that_cannot_be_had_are_named(tmp_path: Path, fails: str) -> None:
    executable(tmp_path / "python3", "exit 1")
    executable(tmp_path / "sudo", 'shift; exec "$@"')
    executable(tmp_path / "apt-get", f"test $1 != {fails}")
    done = run_script("system_deps", "venv", path=tmp_path)
    assert done.returncode == 1
    assert "python3-venv" in done.stderr and f"apt-get {fails} failed" in done.stderr


def test_without_apt_the_packages_are_named(tmp_path: Path) -> None:
    executable(tmp_path / "python3", "exit 1")
    done = run_script("system_deps", "venv", "node", "npm", path=tmp_path)
    assert (done.returncode, "python3-venv nodejs npm" in done.stderr) == (1, True)


def test_system_packages_that_are_there_are_left_alone(tmp_path: Path) -> None:
    executable(tmp_path / "python3", "exit 0")
    executable(tmp_path / "apt-get", "echo called >&2")
    done = run_script("system_deps", "venv", path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    executable(tmp_path / "python3", 'case "$*" in *--version*) echo Python 3.9.2;; *) exit 1;; esac')
    done = run_script("make_venv", str(tmp_path / "venv"), path=tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; python3 is Python 3.9.2" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_help_names_every_target() -> None:
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert all(f"make {target} " in done.stdout for target in ("serve", "test", "check", "bench", "clean"))


def test_serving_installs_no_test_tools() -> None:
    dry = ["make", "-n", "-C", str(ROOT), "serve", "VENV=no-such-environment"]
    plan = subprocess.run(dry, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "pip install -c constraints.txt -e ." in plan
    assert "transformers" not in plan and "group" not in plan
