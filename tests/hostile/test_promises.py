"""An engine that fails: one terminal for everybody, of a kind that never looks like success. Promises 1, 3 and 6."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from causerie.engines.scripted import OutOfBlocks
from tests.hostile.conftest import Serve
from tests.support.raw import ChatSocket, Connection, Truncated, chunks, content, events
from tests.support.served import STREAMED, chat_body, until

BEGINNING = b"a beginning"


class SecretFault(Exception):
    """Its text must reach nobody."""


def breaks(prompt: Sequence[int]) -> Iterator[int]:
    yield from BEGINNING
    raise SecretFault("/etc/secret")


def runs_out(prompt: Sequence[int]) -> Iterator[int]:
    yield from BEGINNING
    raise OutOfBlocks


FAULTS = {"engine_error": breaks, "engine_out_of_memory": runs_out}


@pytest.mark.parametrize("code", FAULTS)
class TestFailureInMidAnswer:
    def test_event_stream_ends_with_one_error_object_and_no_done(self, serve: Serve, code: str) -> None:
        """Promise 1."""
        connection = serve(FAULTS[code]).chat(stream=True)
        answer = connection.answer()
        assert answer.status == 200
        found = events(answer.body)
        assert "[DONE]" not in found
        assert [data for data in found if '"error"' in data] == found[-1:]
        assert f'"code":"{code}"' in found[-1]
        assert b"secret" not in answer.body
        assert '"finish_reason":"' not in "".join(found)

    def test_plain_text_has_no_last_chunk(self, serve: Serve, code: str) -> None:
        """Promise 1."""
        connection = serve(FAULTS[code], step_seconds=0.001).say()
        connection.head()
        said = b""
        with pytest.raises((Truncated, ConnectionError)):
            while True:
                said += connection.chunk()
        assert BEGINNING.startswith(said)

    def test_chat_socket_closes_with_1011_and_no_sentinel(self, serve: Serve, code: str) -> None:
        """Promise 1."""
        socket = serve(FAULTS[code]).socket().text("Hi")
        assert socket.close_code() == 1011

    def test_whole_answer_is_an_error_object(self, serve: Serve, code: str) -> None:
        """Promises 1 and 6: the engine's fault is no client's, and its text is nobody's."""
        answer = serve(FAULTS[code]).chat().answer()
        assert answer.status in (500, 503)
        assert answer.error["code"] == code
        assert b"secret" not in answer.body


def test_failed_neighbour_changes_nobodys_text(serve: Serve) -> None:
    """Promise 3."""

    def script(prompt: Sequence[int]) -> Iterator[int]:
        if ord("!") in prompt:
            return breaks(prompt)
        return iter(b"all of a longer answer")

    server = serve(script, step_seconds=0.002)
    good = [server.chat("Hi", stream=True) for _ in range(4)]
    bad = [server.chat("Hi!", stream=number % 2 == 0) for number in range(4)]
    socket = server.socket().text("Hi!")
    assert [content(connection.answer().body) for connection in good] == ["all of a longer answer"] * 4
    assert all(b'"code":"engine_error"' in connection.answer().body for connection in bad)
    assert socket.close_code() == 1011


def test_reader_that_lags_gets_everything_and_hinders_nobody(serve: Serve) -> None:
    """Promises 3 and 7: who reads late gets the same text, in fewer pieces; the engine waited for nobody."""
    text = "é😀 " * 400
    server = serve(lambda _: text.encode(), {"max_tokens": 5000}, ids_per_step=7)
    late: list[Connection] = [server.begin(way) for way in ("events", "text")]
    lagging = server.socket(receive_buffer=4096).text("Hi")
    assert content(server.chat(stream=True).answer().body) == text
    until(lambda: server.service.running == 0, within=5.0)
    assert content(late[0].answer().body) == text
    assert late[1].answer().body.decode() == text
    assert "".join(lagging.frames()) == text


@pytest.mark.parametrize("way", [*STREAMED, "whole"])
def test_nothing_follows_the_terminal(serve: Serve, way: str) -> None:
    """Promise 1: one end, and after it silence, until the client says something or the server closes."""
    server = serve(lambda _: b"ok")
    client = server.begin(way)
    if isinstance(client, ChatSocket):
        assert client.frames() == ["ok"]
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.frame()
    else:
        answer = client.answer()
        assert answer.body.count(b"[DONE]") == (way == "events")
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.exactly(1)


def test_usage_counts_what_was_said(serve: Serve) -> None:
    """Promise 7: what is counted is what the engine gave, the end-of-text token too."""
    server = serve(lambda _: "é😀".encode())
    answer = server.ask(
        "POST", "/v1/chat/completions", chat_body("Hi", n=3, stream=True, stream_options={"include_usage": True})
    )
    usage = chunks(answer.body)[-1]["usage"]
    assert usage["prompt_tokens"] == len(next(iter(server.watch.prompts.values())))
    assert usage["completion_tokens"] == sum(len(ids) for ids in server.watch.answers.values()) == 3 * 7
    assert [content(answer.body, index) for index in range(3)] == ["é😀"] * 3


def test_sentinel_comes_once_for_each_turn_whoever_leaves(serve: Serve) -> None:
    """Promises 1 and 3 on the chat socket."""
    permits = threading.Semaphore(0)
    server = serve(lambda _: b"ok", permits=permits)
    staying, leaving = server.socket().text("Hi"), server.socket().text("Hi")
    until(lambda: server.service.running == 2, within=5.0)
    leaving.reset()
    permits.release(100)
    assert "".join(staying.frames()) == "ok"
    assert staying.turn("And?") == "ok"
