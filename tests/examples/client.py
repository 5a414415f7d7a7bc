"""An example client as a program, with the times at which its output came."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


_HELD = """
import runpy, sys
import requests, websockets.sync.client
print("ready", flush=True)
sys.stdin.readline()
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Client:
    """An example program, and when each piece of its output came. One that is ``held`` waits to be told to begin."""

    def __init__(self, name: str, *arguments: str, held: bool = False) -> None:
        begin = ["-c", _HELD] if held else []
        self.process = subprocess.Popen(
            [sys.executable, *begin, EXAMPLES / name, *arguments],
            stdin=subprocess.PIPE if held else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        if held:
            assert self.process.stdout.readline() == b"ready\n"
        self.pieces: list[tuple[float, bytes]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def two(cls, name: str, *arguments: str) -> list[Client]:
        """Two that begin at the same moment, however long a program takes here to load."""
        pair = [cls(name, *arguments, held=True) for _ in range(2)]
        for client in pair:
            assert client.process.stdin is not None
            client.process.stdin.close()
        return pair

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
        return self.text

    @property
    def text(self) -> str:
        return b"".join(piece for _, piece in self.pieces).decode()
