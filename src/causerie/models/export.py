"""Running a conversion as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from causerie.errors import ModelUnavailable


def run_export(module: str, *arguments: Path) -> None:
    """Run ``module`` with ``arguments``, so that its memory and its chatter go with it.

    Raises ModelUnavailable with the last line it said if it fails.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else "it said nothing"
    if done.returncode < 0:
        reason = f"killed by signal {-done.returncode}; was there enough memory?"
    raise ModelUnavailable(f"The model could not be converted ({reason}).")
