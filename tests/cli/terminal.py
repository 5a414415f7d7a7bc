"""A command at a real (pseudo) terminal: what a person types, Ctrl-C included, and what they see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.command import COMMAND, DEADLINE, environment

CTRL_C = "\x03"
CTRL_D = "\x04"


class Terminal:
    """``seen`` is everything that the screen has shown."""

    def __init__(self, *arguments: str) -> None:
        self._fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment(TERM="dumb"),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(other)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until the screen shows ``pattern``, and takes it and all before it out of ``seen``."""
        end = time.monotonic() + DEADLINE
        while not (match := re.search(pattern, self.seen)):
            left = end - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{pattern!r} did not come; the screen shows {self.seen!r}")
        self.seen = self.seen[match.end() :]
        return match

    def end(self) -> int:
        """The exit code, once the command has left."""
        while self._read(DEADLINE):
            pass
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        os.close(self._fd)

    def _read(self, timeout: float) -> bool:
        if not select.select([self._fd], [], [], timeout)[0]:
            return False
        try:
            piece = os.read(self._fd, 65536)
        except OSError:  # EIO: the last one at the other end has closed.
            return False
        self.seen += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    opened = Terminal(*arguments)
    try:
        yield opened
    finally:
        opened.close()
