"""The two example clients, as real programs against the real server."""

from __future__ import annotations

import re

import pytest

from tests.cli.command import serving
from tests.examples.client import EXAMPLES, Client

FINISHED = "<<Response Finished>>"


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
