"""``causerie serve`` as a process of its own, and what the kernel says of a process's memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


def memory_peak(pid: int | None = None) -> int:
    """The most memory, in bytes, that was resident since the last ``reset_memory_peak``."""
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def reset_memory_peak(pid: int | None = None) -> None:
    Path(f"/proc/{pid or os.getpid()}/clear_refs").write_text("5")


class ServeProcess:
    """A server that has said where it listens."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self, within: float) -> int:
        """Its exit status; fails if it still runs after so many seconds."""
        return self.process.wait(within)

    def orphans(self) -> list[int]:
        """Processes of its session that are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.pid and fields[0] != "Z":
                found.append(int(path.parent.name))
        return found


@contextmanager
def serve_process(*options: str, engine: str = "scripted", within: float = 60.0) -> Iterator[ServeProcess]:
    """``causerie serve`` on a free port, in a session of its own; killed at the end if it still runs.

    It keeps nothing unless ``--store`` says where: the user's own store has room for one server.
    """
    defaults = ["--port", "0", "--engine", engine, "--store", ":memory:"]
    command = [sys.executable, "-m", "causerie", "serve", *defaults, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    timer = threading.Timer(within, process.kill)
    timer.start()
    lines: list[str] = []
    stderr = process.stderr
    assert stderr is not None
    drain = threading.Thread(target=lines.extend, args=(stderr,), daemon=True)
    try:
        for line in stderr:
            lines.append(line)
            found = re.search(r"http://\S+", line)
            if found is not None:
                break
        else:
            raise AssertionError("the server did not start: " + "".join(lines))
        timer.cancel()
        drain.start()
        yield ServeProcess(process, found[0].rstrip("/"))
    finally:
        timer.cancel()
        process.kill()
        process.wait(10)
        if drain.ident is not None:
            drain.join(5)
        stderr.close()
