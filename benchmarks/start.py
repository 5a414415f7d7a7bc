"""How long a start takes, and how much is installed.

- ``import causerie`` in a fresh interpreter.
- ``causerie serve`` on a warm cache: from the command to the first bytes of an answer, by a client that asks as
  soon as the port is open.
- ``--install``: the size of a fresh environment with the default install, and whether torch came along. Takes a
  package index and minutes.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import finish, machine_line, spread, table
from benchmarks.server import free_port

ROOT = Path(__file__).resolve().parents[1]
_REQUEST = b"POST /?max_tokens=8 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\nHi"


_IMPORT = "import time; begin = time.perf_counter(); import causerie; print(time.perf_counter() - begin)"


def import_seconds() -> float:
    """What ``import causerie`` takes in a fresh interpreter."""
    return float(subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True).stdout)


def first_answer_seconds() -> float:
    """From the start of ``causerie serve`` to the first bytes of an answer's body."""
    port = free_port()
    begin = time.perf_counter()
    command = [sys.executable, "-m", "causerie", "serve", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with _connect(port, server) as sock:
            sock.sendall(_REQUEST)
            answer = b""
            while not answer.partition(b"\r\n\r\n")[2]:
                data = sock.recv(65536)
                if not data:
                    raise RuntimeError(f"The server said no more than {answer!r}.")
                answer += data
        seconds = time.perf_counter() - begin
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer.decode(errors="replace"))
        return seconds
    finally:
        server.terminate()
        server.wait(60)


def _connect(port: int, server: subprocess.Popen[bytes]) -> socket.socket:
    """As soon as the port is open; the server listens before its model is loaded."""
    while server.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=120)
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise RuntimeError(f"The server ended with code {server.returncode}.")


def install() -> dict[str, Any]:
    """A fresh environment with the default install: its size without pip's own, and whether it holds torch."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        empty = _size(Path(folder))
        python = str(Path(folder) / "bin" / "python")
        command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        constraints = ROOT / "constraints.txt"
        begin = time.perf_counter()
        subprocess.run([*command, "-c", str(constraints), str(ROOT)], check=True)
        seconds = time.perf_counter() - begin
        installed = subprocess.run(
            [python, "-m", "pip", "list", "--format", "freeze"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        names = {line.split("==")[0].lower() for line in installed}
        return {
            "megabytes": (_size(Path(folder)) - empty) / 1e6,
            "seconds": seconds,
            "packages": len(names),
            "torch": "torch" in names,
        }


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_symlink())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--install", action="store_true", help="measure a fresh default install too")
    arguments = parser.parse_args()
    import_seconds()
    imports = [import_seconds() for _ in range(arguments.rounds)]
    first_answer_seconds()
    answers = [first_answer_seconds() for _ in range(arguments.rounds)]
    rows: list[tuple[str, str]] = [
        ("`import causerie`, ms", spread([1000 * seconds for seconds in imports])),
        ("`causerie serve` to the first text, warm cache, s", spread(answers)),
    ]
    result: dict[str, Any] = {
        "import_ms": 1000 * statistics.median(imports),
        "first_answer_seconds": statistics.median(answers),
    }
    if arguments.install:
        result["install"] = fresh = install()
        torch = "with torch" if fresh["torch"] else "no torch"
        rows.append(("default install, MB", f"{fresh['megabytes']:.0f} ({fresh['packages']} packages, {torch})"))
        rows.append(("default install, s", f"{fresh['seconds']:.0f}"))
    print(machine_line() + "\n")
    print(table(("", "median (range)"), rows))
    finish("start", result)


if __name__ == "__main__":
    main()
