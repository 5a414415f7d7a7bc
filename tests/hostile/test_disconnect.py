"""Clients that leave without a word, at every moment: cases 1 to 5, 7 and 8, promises 2 and 3."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import pytest

from tests.hostile.conftest import Serve
from tests.support.raw import ChatSocket, Connection, Truncated, content
from tests.support.served import STREAMED, WAYS, Served, chat_body, first_text, logs_alive, open_files, until

LEAVINGS: dict[str, Callable[[Connection], None]] = {"reset": Connection.reset, "close": Connection.close}
DROPPED = 'cancellations_total{cause="client"}'


def endless(_: Sequence[int]) -> Iterable[int]:
    return itertools.cycle(b"na ")


def spelled(server: Served, ids: Sequence[int]) -> str:
    return b"".join(server.service.text.token_bytes(id_) for id_ in ids).decode()


def prompts(server: Served) -> list[str]:
    return [spelled(server, ids) for ids in server.watch.prompts.values()]


@pytest.mark.parametrize("way", STREAMED)
def test_reset_in_mid_stream_frees_the_slot_within_two_steps(serve: Serve, way: str) -> None:
    """Case 1, promise 2."""
    permits = threading.Semaphore(0)
    server = serve(endless, permits=permits)
    client = server.begin(way)
    permits.release(3)
    first_text(client)
    client.reset()
    until(lambda: server.metric(DROPPED) == 1, within=1.0)
    permits.release(2)
    server.idle(within=1.0)


@pytest.mark.parametrize("way", STREAMED)
def test_reset_in_mid_stream_frees_the_slot_within_a_second(serve: Serve, way: str) -> None:
    """Case 1, promise 2."""
    server = serve(endless, step_seconds=0.01)
    client = server.begin(way)
    first_text(client)
    client.reset()
    server.idle(within=1.0)
    assert server.metric(DROPPED) == 1


@pytest.mark.parametrize("leave", LEAVINGS)
@pytest.mark.parametrize("way", WAYS)
def test_client_that_leaves_before_the_first_token_is_dropped(serve: Serve, way: str, leave: str) -> None:
    """Case 2."""
    permits = threading.Semaphore(0)
    server = serve(endless, permits=permits)
    client = server.begin(way)
    until(lambda: server.service.running == 1, within=5.0)
    LEAVINGS[leave](client)
    until(lambda: server.metric(DROPPED) == 1, within=1.0)
    permits.release(2)
    server.idle(within=1.0)


@pytest.mark.parametrize("way", ["events", "text", "whole"])
def test_half_closed_connection_counts_as_left_and_its_answer_never_looks_whole(serve: Serve, way: str) -> None:
    """Case 2: a FIN is all that a server sees of a client that has gone, so it is taken at its word."""
    server = serve(endless, step_seconds=0.01)
    client = server.begin(way)
    until(lambda: server.service.running == 1, within=5.0)
    client.half_close()
    server.idle(within=1.0)
    got = client.rest()
    assert not got.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in got


@pytest.mark.parametrize("leave", LEAVINGS)
@pytest.mark.parametrize("way", WAYS)
def test_client_that_leaves_the_queue_is_never_scheduled(serve: Serve, way: str, leave: str) -> None:
    """Case 3."""
    server = serve(endless, {"max_batch_size": 1}, step_seconds=0.005)
    first = server.begin("events", "first", max_tokens=60)
    until(lambda: server.service.running == 1, within=5.0)
    second = server.begin(way, "second")
    until(lambda: server.service.waiting == 1, within=5.0)
    LEAVINGS[leave](second)
    until(lambda: server.service.waiting == 0, within=1.0)
    assert content(first.answer().body) == "na " * 20
    server.idle()
    assert [text for text in prompts(server) if "first" in text]
    assert not [text for text in prompts(server) if "second" in text]


@pytest.mark.parametrize("leave", LEAVINGS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_call_that_does_not_stream_is_aborted_when_its_client_leaves(serve: Serve, path: str, leave: str) -> None:
    """Case 4."""
    server = serve(endless, step_seconds=0.01)
    body = {"prompt": "Hi"} if path == "/v1/completions" else chat_body()
    client = server.request("POST", path, body | {"n": 3})
    until(lambda: server.service.running == 3, within=5.0)
    LEAVINGS[leave](client)
    server.idle(within=1.0)
    assert server.metric(DROPPED) == 1


@pytest.mark.parametrize("body", [b"", b"x" * 300_000], ids=["small", "large"])
@pytest.mark.parametrize("way", ["events", "text", "whole"])
def test_client_that_sent_its_next_request_too_early_is_dropped_all_the_same(
    serve: Serve, way: str, body: bytes
) -> None:
    """Cases 1 and 4, with a second request already on the connection."""
    server = serve(endless, step_seconds=0.01)
    client = server.begin(way)
    until(lambda: server.service.running == 1, within=5.0)
    client.socket.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        client.request("POST", "/", body or b"next")
    time.sleep(0.05)
    client.reset()
    server.idle(within=1.0)


def test_next_request_sent_too_early_is_answered_or_the_connection_closes(serve: Serve) -> None:
    """A response is never mixed up: the first is whole, and what follows is the second's or the end."""
    server = serve(lambda prompt: b"one" if ord("1") in prompt else b"two", step_seconds=0.01)
    client = server.chat("1").request("POST", "/", b"2")
    assert client.answer().json()["choices"][0]["message"]["content"] == "one"
    try:
        assert client.answer().body == b"two"
    except (Truncated, ConnectionError):
        assert client.ended()


def _moments(server: Served) -> dict[str, Callable[[], Connection]]:
    """Ways to connect and get so far, but no further."""
    chat = b'{"messages":[{"role":"user","content":"Hi"}],"stream":true}'

    def connected() -> Connection:
        return server.connect()

    def in_the_request_line() -> Connection:
        return server.connect().send(b"POST /v1/ch")

    def in_the_headers() -> Connection:
        return server.connect().send(b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Thing: b")

    def in_the_body() -> Connection:
        return server.connect().send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")

    def in_a_chunk() -> Connection:
        return server.connect().send(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nhalf"
        )

    def asked() -> Connection:
        return server.request("POST", "/v1/chat/completions", chat)

    def asked_whole() -> Connection:
        return server.chat()

    def with_the_headers() -> Connection:
        connection = asked()
        connection.head()
        return connection

    def in_the_stream() -> Connection:
        connection = server.say()
        first_text(connection)
        return connection

    def in_the_handshake() -> Connection:
        return server.connect().send(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        )

    def handshake_sent() -> Connection:
        return server.bare_socket().ask()

    def on_the_socket() -> Connection:
        return server.socket()

    def in_a_frame() -> Connection:
        return server.socket().send(b"\x81\xfe\x10")

    def in_a_message() -> Connection:
        return server.socket().send(b"\x01\x82\0\0\0\0ab")

    def in_a_turn() -> Connection:
        socket = server.socket().text("Hi").text("And then?")
        socket.frame()
        return socket

    moments = (
        connected, in_the_request_line, in_the_headers, in_the_body, in_a_chunk, asked, asked_whole,
        with_the_headers, in_the_stream, in_the_handshake, handshake_sent, on_the_socket, in_a_frame,
        in_a_message, in_a_turn,
    )  # fmt: skip
    return {moment.__name__: moment for moment in moments}


def test_two_hundred_clients_that_connect_and_reset_leave_nothing(serve: Serve) -> None:
    """Case 5: no file descriptor, no task, no place in the queue, no log."""
    server = serve(endless, {"max_batch_size": 4}, step_seconds=0.002)
    moments = list(_moments(server).values())
    for moment in moments:
        moment().reset()
    server.idle(within=5.0)
    until(lambda: server.tasks() <= server.baseline, within=5.0)
    files, logs = open_files(), logs_alive()
    for moment in itertools.islice(itertools.cycle(moments), 200):
        moment().reset()
    server.idle(within=5.0)
    until(lambda: server.tasks() <= server.baseline, within=5.0)
    until(lambda: open_files() <= files, within=5.0)
    until(lambda: logs_alive() <= logs, within=5.0)
    assert not server.service._responses


def test_turn_sent_while_another_is_answered_sees_the_whole_answer(serve: Serve) -> None:
    """Case 7: what the history holds is what the client got."""
    server = serve(lambda _: b"an answer of some length", step_seconds=0.005)
    socket = server.socket().text("one").text("two")
    said = ["".join(socket.frames()) for _ in range(2)]
    assert said == ["an answer of some length"] * 2
    last = list(server.watch.prompts.values())[-1]
    assert spelled(server, last) == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nan answer of some length<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_answer_cut_at_its_limit_is_in_the_history_as_it_was_sent(serve: Serve) -> None:
    """Case 7."""
    server = serve(endless, {"max_tokens": 7})
    socket = server.socket()
    said = socket.turn("one")
    assert said == "na na n"
    socket.turn("two")
    last = list(server.watch.prompts.values())[-1]
    assert "assistant\nna na n<|im_end|>" in spelled(server, last)


def test_call_that_was_dropped_in_mid_turn_leaves_no_trace_in_the_next(serve: Serve) -> None:
    """Case 7: stopped by leaving, and the next turn at once."""
    server = serve(lambda _: b"an answer of some length", step_seconds=0.01)
    socket = server.socket().text("one")
    socket.frame()
    socket.reset()
    assert server.socket().turn("two") == "an answer of some length"
    last = list(server.watch.prompts.values())[-1]
    assert spelled(server, last) == "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("way", ["events", "text", "whole"])
def test_request_id_in_use_is_refused_and_its_owner_unaffected(serve: Serve, way: str) -> None:
    """Case 8."""
    permits = threading.Semaphore(0)
    server = serve(lambda _: b"all of it", permits=permits)
    mine = {"X-Request-Id": "mine"}
    first = server.request("POST", "/v1/chat/completions", chat_body(stream=True), mine)
    until(lambda: server.service.running == 1, within=5.0)
    for _ in range(3):
        path, body = ("/", b"Hi") if way == "text" else ("/v1/chat/completions", chat_body(stream=way == "events"))
        second = server.ask("POST", path, body, mine)
        assert second.status == 409
        assert second.error["code"] == "duplicate_request"
        assert second.headers["x-request-id"] == "mine"
    permits.release(1000)
    assert content(first.answer().body) == "all of it"
    server.idle()
    assert server.ask("POST", "/", b"Hi", mine).body == b"all of it"


def test_of_ten_at_once_with_one_request_id_exactly_one_is_answered(serve: Serve) -> None:
    """Case 8, while the prompt is still being tokenised too."""
    server = serve(lambda _: b"all of it", step_seconds=0.01)
    clients = [server.chat("x" * 6000, {"X-Request-Id": "mine"}) for _ in range(10)]
    assert sorted(client.answer().status for client in clients) == [200] + [409] * 9


def test_leaving_neighbours_change_nobodys_text(serve: Serve) -> None:
    """Promise 3: on the script, where text can be compared."""
    server = serve(lambda prompt: bytes(id_ for id_ in prompt if id_ < 256)[5:] * 3, step_seconds=0.002)
    text = "a text that is told three times "
    alone = content(server.chat(text, stream=True).answer().body)
    staying = [server.chat(text, stream=True) for _ in range(4)]
    leaving = [server.begin(way, text) for way in STREAMED * 4]
    for client in leaving:
        first_text(client)
        client.reset()
    assert [content(client.answer().body) for client in staying] == [alone] * 4


@pytest.mark.model
class TestOnTheRealModel:
    LONG: ClassVar[dict[str, Any]] = {"max_tokens": 3000, "ignore_eos": True}

    @pytest.mark.parametrize("way", WAYS)
    def test_dropped_client_frees_its_slot_within_a_second(self, real: Served, way: str) -> None:
        """Cases 1, 2 and 4."""
        for leave in LEAVINGS.values():
            client = real.begin(way, "Tell me a very long story.", **self.LONG)
            if way == "whole":
                until(lambda: real.service.running == 1, within=5.0)
            else:
                first_text(client)
            leave(client)
            real.idle(within=1.0)
            until(lambda: not real.watch.running, within=1.0)

    def test_neighbours_of_a_dropped_client_are_answered_in_full(self, real: Served) -> None:
        """Promise 3: order, completeness and one terminal; text is not compared at unequal batch shapes."""
        staying = [real.chat("Count to ten.", stream=True, max_tokens=40, ignore_eos=True) for _ in range(4)]
        leaving: list[Connection] = [real.chat("Tell me a story.", stream=True, **self.LONG) for _ in range(4)]
        leaving += [real.socket().text("Tell me a story.")]
        for client in leaving:
            first_text(client)
            client.reset()
        for client in staying:
            assert content(client.answer().body)
        real.idle(within=1.0)

    def test_client_that_leaves_while_its_long_prompt_is_read_frees_its_slot(self, real: Served) -> None:
        """Case 2."""
        client = real.chat("word " * 6000)
        until(lambda: real.watch.running, within=10.0)
        client.reset()
        real.idle(within=1.0)
        until(lambda: not real.watch.running, within=2.0)


def test_a_socket_that_closes_by_handshake_in_mid_turn_is_freed(serve: Serve) -> None:
    """Case 1, with a close frame."""
    server = serve(endless, step_seconds=0.01)
    socket = server.socket().text("Hi")
    socket.frame()
    socket.send(b"\x88\x82\0\0\0\0\x03\xe8")
    server.idle(within=1.0)
    assert isinstance(socket, ChatSocket)
    assert socket.close_code() == 1000
