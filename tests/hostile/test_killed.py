"""The server is killed, or told to end, while it answers: what a client was told is in the store."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import ServeProcess, serve_process
from tests.support.raw import ChatSocket
from tests.support.served import chat_body, until
from tests.support.stored import Stream, Streaming, ask, made, read_again, said

QUESTION = "Wer läuft da durch den Wald? 🦁 " * 20
ANSWER = f"You said: {QUESTION.strip()}. This is the scripted engine; it answers every turn this way."


def check_interrupted(server: ServeProcess, had: Stream) -> dict[str, Any]:
    """After the restart: nothing that the client has is missing, nothing is there that was not said, and it is over."""
    body: dict[str, Any] = ask(server, "GET", f"/v1/responses/{had.id}").json()
    text = said(body)
    assert text.startswith(had.text) and ANSWER.startswith(text)
    assert body["status"] == "failed" and body["error"]["type"] == "interrupted", body
    again = read_again(server, had.id)
    assert again.text == text and said(again.end) == text
    assert [event["sequence_number"] for event in had.events] == sorted({e["sequence_number"] for e in had.events})
    for event in random.sample(had.events, 3):
        rest = read_again(server, had.id, event["sequence_number"])
        before = "".join(
            e["delta"] for e in had.events[: had.events.index(event) + 1] if e["type"].endswith("output_text.delta")
        )
        assert before + rest.text == text and rest.end == again.end
    return body


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(2))
def test_what_a_client_was_told_survives_kill_9(tmp_path: Path, turn: int) -> None:
    store = ("--store", str(tmp_path / "responses.sqlite3"))
    with serve_process(*store) as server:
        talk = made(server, "/v1/conversations")["id"]
        made(server, "/v1/responses", input="Hello", conversation=talk)
        streams = [Streaming(server, input=QUESTION) for _ in range(4)]
        streams.append(Streaming(server, input=QUESTION, conversation=talk))
        background = made(server, "/v1/responses", input=QUESTION, background=True)
        for stream in streams:
            stream.begun()
        threading.Event().wait(random.uniform(0, 2.0))
        server.signal(signal.SIGKILL)
        had = [stream.finish() for stream in streams]
        assert all(not stream.ended and not stream.whole for stream in had)
    with serve_process(*store) as server:
        for one in had:
            check_interrupted(server, one)
        assert ask(server, "GET", f"/v1/responses/{background['id']}").json()["status"] == "failed"
        check_conversation(server, talk, had[-1])


def check_conversation(server: ServeProcess, talk: str, cut: Stream) -> None:
    """It has the turn that was cut, as far as it was said, and goes on behind it."""
    items = ask(server, "GET", f"/v1/conversations/{talk}/items?order=asc").json()["data"]
    texts = [(item["role"], item["content"][0]["text"], item["status"]) for item in items]
    stored = said(ask(server, "GET", f"/v1/responses/{cut.id}").json())
    assert texts[0][:2] == ("user", "Hello") and texts[1][0] == "assistant"
    assert texts[2:] == [("user", QUESTION, "completed"), ("assistant", stored, "incomplete")]
    response = made(server, "/v1/responses", input="And now?", conversation=talk)
    assert response["status"] == "completed" and "And now?" in said(response)
    assert len(ask(server, "GET", f"/v1/conversations/{talk}/items").json()["data"]) == 6
    after = made(server, "/v1/responses", input="And now?", previous_response_id=cut.id)
    assert after["status"] == "completed"


@pytest.mark.slow
def test_what_runs_at_sigterm_is_kept_whole_or_as_failed(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "responses.sqlite3"), "--shutdown-deadline", "4")
    with serve_process(*store) as server:
        short = Streaming(server, input=QUESTION[:150])
        long = Streaming(server, input=QUESTION * 5)
        short.begun()
        long.begun()
        server.signal(signal.SIGTERM)
        finished, failed = short.finish(), long.finish()
        assert server.status(within=15) == 0
    assert finished.whole and finished.end["status"] == "completed"
    assert failed.whole and failed.end["error"]["type"] == "server_shutting_down"
    with serve_process(*store) as server:
        for stream in (finished, failed):
            assert ask(server, "GET", f"/v1/responses/{stream.id}").json() == stream.end
            assert read_again(server, stream.id).events[-1] == stream.events[-1]


@pytest.mark.slow
def test_what_is_not_to_be_kept_never_touches_the_disk(tmp_path: Path) -> None:
    store = tmp_path / "responses.sqlite3"
    with serve_process("--store", str(store)) as server:

        def files() -> dict[str, tuple[int, int, bytes]]:
            found = {path: path.stat() for path in tmp_path.iterdir()}
            return {path.name: (is_.st_size, is_.st_mtime_ns, path.read_bytes()) for path, is_ in found.items()}

        before = files()
        assert ask(server, "POST", "/v1/chat/completions", chat_body()).status == 200
        assert (
            ask(server, "POST", "/v1/chat/completions", chat_body(stream=True, on_disconnect="continue")).status == 200
        )
        assert ask(server, "POST", "/v1/completions", {"prompt": "Hi"}).status == 200
        assert ask(server, "POST", "/", b"Hi").status == 200
        assert ask(server, "POST", "/v1/responses", {"input": "Hi", "store": False}).status == 200
        unkept = {"input": "Hi", "store": False, "stream": True}
        assert ask(server, "POST", "/v1/responses", unkept).status == 200
        assert ask(server, "POST", "/v1/responses", unkept | {"on_disconnect": "continue"}).status == 200
        assert ask(server, "POST", "/", b"Hi", {"X-On-Disconnect": "grace(30)"}).status == 200
        with ChatSocket(server.address) as socket:
            assert socket.open().turn("Hi")
        assert files() == before
        made(server, "/v1/responses", input="Hi")
        assert files() != before


@pytest.mark.slow
def test_what_a_client_said_to_have_shown_survives_kill_9(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "responses.sqlite3"))
    with serve_process(*store) as server:
        talk = made(server, "/v1/conversations")["id"]
        streaming = Streaming(server, input=QUESTION, conversation=talk)
        stream = streaming.begun()
        until(lambda: len(stream.text) > 20, 10.0)
        assert ask(server, "POST", f"/v1/responses/{stream.id}/ack", {"text_end": 15}).status == 200
        had = len(stream.text)
        # It is kept with the text that comes next.
        until(lambda: len(stream.text) > had + 20, 10.0)
        server.signal(signal.SIGKILL)
        delivered = streaming.finish().text
    with serve_process(*store) as server:
        response = ask(server, "GET", f"/v1/responses/{stream.id}").json()
        assert response["error"]["type"] == "interrupted" and said(response) == ANSWER[:15]
        again = read_again(server, stream.id)
        assert again.text.startswith(delivered) and said(again.end) == ANSWER[:15]
        items = ask(server, "GET", f"/v1/conversations/{talk}/items?order=asc").json()["data"]
        assert [item["content"][0]["text"] for item in items] == [QUESTION, ANSWER[:15]]
