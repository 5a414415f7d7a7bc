"""A Ray of the tests' own, and bots of the examples folder that run on it as ``serve run`` starts them.

Run as a program it is the cluster: it lives until its standard input ends, and for every port on it starts Ray Serve.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVE = Path(sys.executable).with_name("serve")
_WORD = "cluster: "


class RayCluster:
    """No dashboard, ports and folders of its own, whatever else runs on the machine.

    ``cpus`` is how many it believes to have, and with that how many replicas it places.
    """

    def __init__(self, cpus: int = 2) -> None:
        # Ray's sockets lie in it, whose paths may not be long.
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with (self.folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                # -P: beside this file lies an http.py.
                [sys.executable, "-P", __file__, str(self.folder), str(cpus)],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self.address = self._said()

    @property
    def logs(self) -> Path:
        return self.folder / "session_latest" / "logs"

    def start_serve(self, port: int) -> None:
        assert self._process.stdin is not None
        print(port, file=self._process.stdin, flush=True)
        assert self._said() == f"port {port}"

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        until(lambda: not self.processes(), 20)
        shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """Every process that was started with this cluster's environment and still lives."""
        mark = f"RAY_AUTH_TOKEN={self.environment['RAY_AUTH_TOKEN']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def _said(self) -> str:
        assert self._process.stdout is not None
        # Ray, too, prints what it has to say.
        for line in self._process.stdout:
            if line.startswith(_WORD):
                return line.removeprefix(_WORD).strip()
        raise AssertionError((self.folder / "stderr").read_text())


class Bot:
    """An application that is being served."""

    def __init__(self, cluster: RayCluster, process: subprocess.Popen[bytes], port: int, known: set[Path]) -> None:
        self._cluster = cluster
        self._known = known
        self.process = process
        self.address = "127.0.0.1", port
        self.url = f"http://127.0.0.1:{port}"
        self.socket_url = f"ws://127.0.0.1:{port}"
        self._said: list[bytes] = []
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._said.extend, args=(process.stdout,), daemon=True)
        self._reader.start()

    @property
    def terminal(self) -> str:
        """What ``serve run`` has printed."""
        return b"".join(self._said).decode()

    @property
    def log(self) -> str:
        """What the replica has logged."""
        return self._read("serve/replica_*.log")

    @property
    def errors(self) -> str:
        """What the processes of Ray that have come since have on their standard error, the replica's log among it."""
        return self._read("worker-*.err")

    def _read(self, pattern: str) -> str:
        found = sorted({*self._cluster.logs.glob(pattern)} - self._known)
        return "".join(path.read_text() for path in found)

    def ready(self) -> None:
        until(lambda: "is ready at" in self.terminal or self.process.poll() is not None, 90)
        assert self.process.poll() is None, self.terminal

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serve_run(cluster: RayCluster, *arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Bot]:
    """``serve run`` in the examples folder; ``variables`` are for the bot."""
    port = free_port()
    cluster.start_serve(port)
    known = {*cluster.logs.glob("**/*")}
    options = [f"--address={cluster.address}", f"--runtime-env-json={json.dumps({'env_vars': dict(variables or {})})}"]
    process = subprocess.Popen(
        [SERVE, "run", *options, *arguments],
        cwd=EXAMPLES,
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    bot = Bot(cluster, process, port, known)
    try:
        yield bot
    finally:
        bot.stop()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def until(condition: Callable[[], object], within: float) -> None:
    """Wait until ``condition`` holds; fails after so many seconds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not so within {within} s"
        time.sleep(0.02)


def _run_cluster(folder: str, cpus: int) -> None:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    context: Any = ray.init(
        "local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder, namespace="serve", log_to_driver=False
    )
    print(_WORD + context.address_info["gcs_address"], flush=True)
    for port in sys.stdin:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(port)))
        print(f"{_WORD}port {port}", end="", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    _run_cluster(sys.argv[1], int(sys.argv[2]))
