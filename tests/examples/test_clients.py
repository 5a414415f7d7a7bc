"""The two example clients, as real programs against the real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cli.command import serving

EXAMPLES = Path(__file__).parents[2] / "examples"
FINISHED = "<<Response Finished>>"


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

    def end(self) -> str:
        """The whole output; the program must end well."""
        self._reader.join(60)
        with self.process:
            code = self.process.wait(60)
            assert self.process.stderr is not None
            assert (code, self.process.stderr.read()) == (0, b"")
        return b"".join(piece for _, piece in self.pieces).decode()


def test_the_http_client_prints_the_answer_as_it_comes() -> None:
    with serving() as (_, url):
        client = Client("stream_client.py", url)
        text = client.end()
    assert text.startswith("You said: ")
    assert text.endswith("this way.\n")
    assert len(client.pieces) > 5
    assert client.pieces[-1][0] - client.pieces[0][0] > 0.2


def test_two_http_clients_both_print_before_either_ends() -> None:
    with serving() as (_, url):
        clients = [Client("stream_client.py", url, f"{name} " * 50) for name in ("Ada", "Bob")]
        texts = [client.end() for client in clients]
    for text, own, other in zip(texts, ("Ada", "Bob"), ("Bob", "Ada"), strict=True):
        assert text.count(own) == 50 and other not in text
    begins = [client.pieces[0][0] for client in clients]
    ends = [client.pieces[-1][0] for client in clients]
    assert max(begins) < min(ends)


@pytest.mark.parametrize("prompt", ["café & crème #1? 100%", "日本語 👩‍👩‍👧‍👦"])
def test_the_http_client_sends_and_prints_any_text(prompt: str) -> None:
    with serving() as (_, url):
        assert Client("stream_client.py", url + "/", prompt).end().startswith(f"You said: {prompt}.")


def test_the_socket_client_has_two_turns() -> None:
    with serving() as (_, url):
        client = Client("ws_client.py", url.replace("http", "ws"))
        text = client.end()
    said = re.findall(r"^you: (.*)$", text, re.MULTILINE)
    heard = re.findall(r"^bot: You said: (.*)\. This is", text, re.MULTILINE)
    assert len(said) == 2 and heard == said
    assert FINISHED not in text
    assert len(client.pieces) > 10


def test_the_default_address_is_the_servers_default() -> None:
    assert "http://localhost:8000" in (EXAMPLES / "stream_client.py").read_text()
    assert "ws://localhost:8000" in (EXAMPLES / "ws_client.py").read_text()
