"""A real Redis for tests: on a Unix socket in a temporary folder, keeping nothing on the disk."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def redis_server(*options: str) -> Iterator[str]:
    """Its URL, while it runs. ``options`` are redis-server's."""
    # A Unix socket's path may have about a hundred characters, fewer than pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    command = ["redis-server", "--port", "0", "--unixsocket", "socket", "--dir", str(folder), "--save", "", *options]
    try:
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            said = []
            for line in server.stdout:
                said.append(line)
                if "Ready to accept connections" in line or "ready to accept connections" in line:
                    break
            else:
                raise RuntimeError("redis-server did not start:\n" + "".join(said))
            try:
                yield f"unix://{folder / 'socket'}"
            finally:
                server.kill()
    finally:
        shutil.rmtree(folder)
