"""``causerie serve`` as a child process, with the settings that a benchmark wants."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from benchmarks.load import Target

_START_TIMEOUT = 300.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def cpu_of(pid: int) -> float:
    """Processor seconds that the threads of a process and of its children took so far (Linux)."""
    own = sum(_on_cpu(task / "schedstat") for task in Path(f"/proc/{pid}/task").iterdir())
    return own + sum(cpu_of(child) for child in _children(pid))


def _children(pid: int) -> list[int]:
    stats = ((int(stat.parent.name), _read(stat)) for stat in Path("/proc").glob("[0-9]*/stat"))
    return [child for child, stat in stats if stat and int(stat.rpartition(")")[2].split()[1]) == pid]


def main_thread_cpu_of(pid: int) -> float:
    """The same of its first thread alone: in our server that is the event loop."""
    return _on_cpu(Path(f"/proc/{pid}/task/{pid}/schedstat"))


def _on_cpu(schedstat: Path) -> float:
    return int((_read(schedstat) or "0").split()[0]) / 1e9


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Server:
    """Runs ``command`` with a free port's number appended, from ``with`` on until ready, and ends it after."""

    def __init__(
        self,
        command: list[str],
        *,
        ready: str = "/ready",
        model: str = "default",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._port = free_port()
        self._command = [*command, str(self._port)]
        self._ready = ready
        self.target = Target(f"http://127.0.0.1:{self._port}", model)

    @classmethod
    def causerie(cls, *flags: str) -> Server:
        """One that keeps nothing unless ``--store`` says where: the user's own store has room for one server."""
        defaults = ["--store", ":memory:", "--log-level", "warning"]
        return cls([sys.executable, "-m", "causerie", "serve", *defaults, *flags, "--port"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            self._wait()
        except BaseException:
            self._process.kill()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise RuntimeError(f"{self._command[0]} ended: {self._process.stderr.read().decode()[-2000:]}")
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_START_TIMEOUT)
            try:
                connection.request("GET", self._ready)
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        raise TimeoutError("The server did not get ready.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
