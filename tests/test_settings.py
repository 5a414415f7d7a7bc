"""Settings: one definition, four sources, and errors that say where the value came from."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from causerie.config import Settings, load_settings
from causerie.errors import ConfigError

ROOT = Path(__file__).parents[1]


def write(folder: Path, text: str) -> Path:
    file = folder / "causerie.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_need_no_source() -> None:
    assert load_settings(environ={}) == Settings()


def test_the_nearer_source_wins(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 1\nmax_batch_size: 1\nmax_waiting: 1\n")
    environ = {"CAUSERIE_PORT": "2", "CAUSERIE_MAX_BATCH_SIZE": "2"}
    settings = load_settings({"port": "3"}, file=file, environ=environ)
    assert (settings.port, settings.max_batch_size, settings.max_waiting) == (3, 2, 1)


@pytest.mark.parametrize(
    ("flags", "environ", "yaml", "named"),
    [
        ({"port": "70000"}, {}, "", "--port"),
        ({"max_batch_size": "many"}, {}, "", "--max-batch-size"),
        ({}, {"CAUSERIE_HEARTBEAT": "0"}, "", "CAUSERIE_HEARTBEAT"),
        ({}, {"CAUSERIE_ENGINE": "steam"}, "", "CAUSERIE_ENGINE"),
        ({}, {"CAUSERIE_MAX_BATCHSIZE": "4"}, "", "CAUSERIE_MAX_BATCHSIZE. Did you mean max_batch_size?"),
        ({}, {}, "port: -1", "'port' in causerie.yaml"),
        ({}, {}, "max_batch_size: true", "'max_batch_size' in causerie.yaml: Give a number, not true or false"),
        ({}, {}, "kv_cache_gib: yes", "'kv_cache_gib' in causerie.yaml: Give a number, not true or false"),
        ({}, {}, "max_output_tokens: no", "'max_output_tokens' in causerie.yaml: Give a number, not true or false"),
        ({}, {}, "max_batchsize: 5", "'max_batchsize' in causerie.yaml"),
    ],
)
def test_a_bad_value_is_named_with_its_source(
    tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], yaml: str, named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, file=write(tmp_path, yaml), environ=environ)
    assert named in str(caught.value)


def test_only_what_a_source_may_hold_is_suggested_for_it(tmp_path: Path) -> None:
    for name in ("zzz", "api_keyss"):
        with pytest.raises(ConfigError, match="api_keys_file") as caught:
            load_settings(file=write(tmp_path, f"{name}: x"), environ={})
        assert not re.search(r"\bapi_keys\b", str(caught.value))
        with pytest.raises(ConfigError, match=r"\bapi_keys\b"):
            load_settings(environ={f"CAUSERIE_{name.upper()}": "x"})


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environ = {"CAUSERIE_CACHE": "/x", "CAUSERIE_CONFIG": "y", "CAUSERIE_SERVER": "z", "PORT": "1"}
    assert load_settings(environ=environ) == Settings()


@pytest.mark.parametrize("text", ["- a list", "just text", "port: [", "\x00"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_settings(file=write(tmp_path, text), environ={})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_settings(file=tmp_path / "nowhere.yaml", environ={})


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert load_settings(file=write(tmp_path, "# nothing yet\n"), environ={}) == Settings()


def test_the_settings_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "settings_page.py"], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == made.stdout, "run: make docs"
