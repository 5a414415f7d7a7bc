"""``causerie serve`` and the command as a whole: help, settings, errors in one line, signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from causerie import __version__
from causerie.config import Settings
from tests.cli.command import SCRIPTED, causerie, environment, one_line, running, serving


def test_the_start_tells_what_runs_where_and_what_to_try() -> None:
    with serving() as (server, url):
        server.wait_for(r"curl[^\n]*\n", "stderr")
        said = server.stderr
        assert server.stdout == ""
        request = urllib.request.Request(url, data=b"hello", method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.read().startswith(b"You said: hello.")
    assert "model: scripted" in said
    assert "engine: scripted" in said
    assert "responses are kept in memory" in said
    assert f"curl -N -d 'Why is the sky blue?' {url}/" in said


@pytest.mark.parametrize("store", ["", "http://x", "folder", "text"])
def test_a_store_that_cannot_be_opened_is_not_announced(store: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("Not a database. " * 100)
    where = str(tmp_path / store) if store in ("folder", "text") else store
    done = causerie("serve", *SCRIPTED, "--port", "0", "--store", where)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "causerie: " in said and "responses are kept" not in said


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(sign: signal.Signals) -> None:
    with serving() as (server, _):
        server.wait_for(r"curl[^\n]*\n", "stderr")
        assert server.stop(sign) == 0
        assert "Traceback" not in server.stderr


def test_a_busy_port_is_one_line_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = causerie("serve", *SCRIPTED, "--port", str(port))
    assert done.returncode == 1
    said = one_line(done.stderr)
    assert str(port) in said and "--port" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--prot", "1"), "--port"),
        (("serve", "--port", "http"), "--port"),
        (("serve", "--port", "70000"), "--port"),
        (("serve", "a/b", "c/d"), "c/d"),
        (("serve", "a/b", "--model", "c/d"), "twice"),
        (("serve", "--config", "no/such.yaml"), "no/such.yaml"),
        (("sreve",), "serve"),
        (("--prot",), "--prot"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: tuple[str, ...], said: str) -> None:
    done = causerie(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in one_line(done.stderr)


def test_a_bad_variable_is_named() -> None:
    done = causerie("serve", env=environment(CAUSERIE_MAX_BATCH_SIZE="lots"))
    assert done.returncode == 2
    assert "CAUSERIE_MAX_BATCH_SIZE" in one_line(done.stderr)


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("portt: 9000\n")
    done = causerie("serve", env=environment(CAUSERIE_CONFIG=str(file)))
    assert done.returncode == 2
    assert "'portt' in settings.yaml" in one_line(done.stderr)


def test_settings_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("engine: scripted\nport: 0\n")
    with running("serve", "--config", str(file)) as server:
        server.wait_for("engine: scripted", "stderr")
        server.wait_for(r"curl[^\n]*\n", "stderr")


def test_help_of_serve_lists_every_setting() -> None:
    done = causerie("serve", "--help")
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    for name in Settings.model_fields:
        assert "--" + name.replace("_", "-") in text
        assert "CAUSERIE_" + name.upper() in text.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("command", ["serve", "ask", "chat", "pull"])
def test_help_shows_examples_and_what_comes_next(command: str) -> None:
    text = causerie(command, "--help").stdout.decode()
    assert "Examples:" in text and f"  causerie {command}" in text


def test_the_command_alone_teaches() -> None:
    done = causerie()
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text == causerie("--help").stdout.decode()
    assert all(f"causerie {command}" in text for command in ("serve", "ask", "chat"))


def test_the_version_is_the_packages() -> None:
    assert causerie("--version").stdout.decode() == f"causerie {__version__}\n"
    script = Path(sys.executable).with_name("causerie")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"causerie {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "ask", "pull"])
def test_a_model_that_is_not_there_is_one_line(command: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.gguf")
    arguments = (missing, "--port", "0") if command == "serve" else ("--model", missing, "hi")
    done = causerie(command, *((missing,) if command == "pull" else arguments))
    assert done.returncode == 1
    assert "missing.gguf" in one_line(done.stderr)


@pytest.mark.model
def test_ctrl_c_while_the_model_is_loaded_leaves_at_once() -> None:
    with running("serve", "--port", "0") as server:
        server.wait_for("engine: openvino", "stderr")
        assert server.stop(signal.SIGINT) == 130
        assert "Traceback" not in server.stderr
        assert "try:" not in server.stderr


@pytest.mark.model
def test_pull_says_how_to_serve() -> None:
    done = causerie("pull")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "SmolLM2-135M-Instruct is ready" in text
    assert "Serve it:  causerie serve\n" in text


@pytest.mark.model
def test_ask_runs_the_default_model_itself() -> None:
    done = causerie("ask", "--temperature", "0", "--max-tokens", "12", "What is the capital of France?")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "Paris" in done.stdout.decode()
