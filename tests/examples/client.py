"""An example client as a program, with the times at which its output came."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


class Client:
    """An example program, and when each piece of its output came."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLES / name, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.pieces: list[tuple[float, bytes]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while piece := os.read(self.process.stdout.fileno(), 65536):
            self.pieces.append((time.monotonic(), piece))

    @property
    def first(self) -> float:
        return self.pieces[0][0]

    @property
    def last(self) -> float:
        """When the last of its text came; the end of the line comes when the program ends."""
        return self.pieces[-1][0]

    def end(self) -> str:
        """The whole output; the program must end well."""
        self._reader.join(60)
        with self.process:
            code = self.process.wait(60)
            assert self.process.stderr is not None
            assert (code, self.process.stderr.read()) == (0, b"")
        return b"".join(piece for _, piece in self.pieces).decode()
