"""The real ``causerie`` command, as a process."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

COMMAND = (sys.executable, "-m", "causerie")
DEADLINE = 60.0
SCRIPTED = ("--engine", "scripted")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings of ours, and with ``extra``.

    Servers keep nothing unless told to: the user's own store has room for one of them.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CAUSERIE_")}
    return {**kept, "CAUSERIE_STORE": ":memory:", **extra}


def causerie(
    *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        timeout=DEADLINE,
        env=environment() if env is None else env,
    )


def one_line(error: bytes) -> str:
    """Standard error, which must be one ``causerie: …`` line."""
    text = error.decode()
    assert re.fullmatch(r"causerie: [^\n]+\n", text), text
    return text.removeprefix("causerie: ").strip()


class Running:
    """A command that is still running; its output can be waited for."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment() if env is None else env,
        )
        self.stdout = ""
        self.stderr = ""
        self._news: queue.Queue[None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in ("stdout", "stderr")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        stream = getattr(self.process, name)
        while piece := os.read(stream.fileno(), 65536):
            setattr(self, name, getattr(self, name) + piece.decode())
            self._news.put(None)
        self._news.put(None)

    def wait_for(self, pattern: str, name: str = "stdout") -> re.Match[str]:
        """The first match of ``pattern`` in what the command has written."""
        while True:
            if match := re.search(pattern, getattr(self, name)):
                return match
            if self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers):
                raise AssertionError(f"ended with {self.process.returncode}: {self.stdout!r} {self.stderr!r}")
            self._news.get(timeout=DEADLINE)

    def stop(self, sign: signal.Signals) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(sign)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def running(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    command = Running(*arguments, env=env)
    try:
        yield command
    finally:
        command.close()


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[Running, str]]:
    """A server on a free port, and its address. It answers by the scripted engine."""
    with running("serve", *SCRIPTED, "--port", "0", *arguments) as server:
        yield server, server.wait_for(r"http://127\.0\.0\.1:\d+", "stderr").group()
