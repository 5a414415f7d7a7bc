"""Bars for a terminal, plain lines for a file, nothing for who asks for nothing."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import termios

import pytest

from causerie.models.progress import Progress, Silent, StderrProgress


def run(progress: Progress) -> None:
    with progress.task("Fetching", 10_000, "B") as advance:
        advance(4_000)
        advance(6_000)
    progress.note("Building…")


def test_a_file_gets_one_line_for_each_step() -> None:
    file = io.StringIO()
    run(StderrProgress(file))
    assert file.getvalue() == "Fetching\nBuilding…\n"


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal:
        run(StderrProgress(terminal))
    drawn = ""
    with contextlib.suppress(OSError):  # How a terminal that nobody has open says that this was all.
        while said := os.read(ours, 10_000):
            drawn += said.decode()
    os.close(ours)
    assert "Fetching" in drawn and "\r" in drawn and "100%" in drawn


def test_silence_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    run(Silent())
    assert capfd.readouterr() == ("", "")
