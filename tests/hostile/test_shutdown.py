"""SIGTERM and Ctrl-C while answers stream, on the real process: case 40, promises 1 and 9."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import orjson
import pytest

from tests.support.process import ServeProcess, serve_process
from tests.support.raw import SENTINEL, TEXT, Answer, ChatSocket, Connection, Truncated, content, events
from tests.support.served import chat_body, first_text, metric_of, until

SHORT, LONG = "x" * 200, "x" * 3000
"""At the scripted engine's pace, 4 characters each 30 ms, answers to these take about 2 and 25 seconds."""
DEADLINE = 1.5
both_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@dataclass
class Clients:
    """One of each kind, in the middle of an answer, and two of them still waiting where there is no more room."""

    events: list[Connection] = field(default_factory=list)
    texts: list[Connection] = field(default_factory=list)
    wholes: list[Connection] = field(default_factory=list)
    sockets: list[ChatSocket] = field(default_factory=list)
    idle: list[ChatSocket] = field(default_factory=list)


@contextmanager
def clients(server: ServeProcess, text: str, each: int = 2, waiting: int = 0) -> Iterator[Clients]:
    with ExitStack() as stack:

        def connection() -> Connection:
            return stack.enter_context(Connection(server.address, timeout=40))

        def socket() -> ChatSocket:
            return stack.enter_context(ChatSocket(server.address, timeout=40)).open()

        found = Clients()
        for _ in range(each):
            found.events.append(connection().request("POST", "/v1/chat/completions", chat_body(text, stream=True)))
            found.texts.append(connection().request("POST", "/", text.encode()))
            found.sockets.append(socket().text(text))
        for started in (*found.events, *found.texts, *found.sockets):
            first_text(started)
        found.wholes += [connection().request("POST", "/v1/chat/completions", chat_body(text)) for _ in range(each)]
        found.idle.append(socket())
        until(lambda: gauge(server, "num_requests_running") == 4 * each, within=5.0)
        for _ in range(waiting):
            found.wholes.append(connection().request("POST", "/v1/chat/completions", chat_body(text)))
            found.events.append(connection().request("POST", "/v1/chat/completions", chat_body(text, stream=True)))
            found.events[-1].head()
        until(lambda: gauge(server, "num_requests_waiting") == 2 * waiting, within=5.0)
        yield found


def gauge(server: ServeProcess, name: str) -> float:
    return metric_of(ask(server, "GET", "/metrics").body, name)


def ask(server: ServeProcess, method: str, path: str, body: bytes | None = None) -> Answer:
    with Connection(server.address) as connection:
        return connection.request(method, path, body).answer()


def check_draining(server: ServeProcess) -> None:
    """Not ready, and no new work: 503 with Retry-After, a refused handshake."""
    until(lambda: ask(server, "GET", "/ready").status == 503, within=2.0)
    for method, path, body in (
        ("POST", "/", b"Hi"),
        ("POST", "/v1/chat/completions", orjson.dumps(chat_body(stream=True))),
        ("POST", "/v1/completions", b'{"prompt":"Hi"}'),
    ):
        answer = ask(server, method, path, body)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.error["code"] == "server_shutting_down"
    with ChatSocket(server.address) as socket:
        assert socket.ask().head()[0] == 503


def rest_of_stream(connection: Connection) -> tuple[bytes, bool]:
    """What is left of a chunked body, and whether it has its proper end."""
    pieces = []
    with suppress(Truncated, ConnectionError):
        while piece := connection.chunk():
            pieces.append(piece)
        assert connection.ended(), "something came after the end"
        return b"".join(pieces), True
    return b"".join(pieces), False


def failed_once(connection: Connection) -> None:
    """An event stream that failed: one error object, it is the last event, and there is no ``[DONE]``."""
    body, whole = rest_of_stream(connection)
    assert whole
    found = events(body)
    errors = [data for data in found if "error" in orjson.loads(data)]
    assert errors == found[-1:]
    assert orjson.loads(found[-1])["error"]["code"] == "server_shutting_down"


@both_signals
def test_running_answers_finish_and_the_process_ends_with_0(number: signal.Signals) -> None:
    """Case 40, promise 9: nobody is refused who was inside."""
    with serve_process() as server, clients(server, SHORT) as inside:
        server.signal(number)
        check_draining(server)
        for stream in inside.events:
            body, whole = rest_of_stream(stream)
            assert whole
            assert SHORT[:50] in content(body)
        for text in inside.texts:
            body, whole = rest_of_stream(text)
            assert whole
            assert body.endswith(b"it answers every turn this way.")
        for plain in inside.wholes:
            assert SHORT in plain.answer().json()["choices"][0]["message"]["content"]
        for socket in inside.sockets:
            assert "".join(socket.frames()).endswith("it answers every turn this way.")
            assert socket.close_code() == 1012
        assert inside.idle[0].close_code() == 1012
        assert server.status(within=10) == 0
        assert not server.orphans()


@both_signals
def test_answers_that_do_not_finish_get_one_error_by_the_deadline(number: signal.Signals) -> None:
    """Case 40, promises 1 and 9: what is cut short never looks whole, whether it ran or waited."""
    with (
        serve_process("--shutdown-deadline", str(DEADLINE), "--max-batch-size", "8") as server,
        clients(server, LONG, waiting=2) as inside,
    ):
        start = time.monotonic()
        server.signal(number)
        check_draining(server)
        for stream in inside.events:
            failed_once(stream)
        assert DEADLINE - 0.5 < time.monotonic() - start < DEADLINE + 3
        for text in inside.texts:
            body, whole = rest_of_stream(text)
            assert body
            assert not whole
        for plain in inside.wholes:
            answer = plain.answer()
            assert answer.status == 503
            assert answer.error["code"] == "server_shutting_down"
            assert int(answer.headers["retry-after"]) >= 1
        for socket in inside.sockets:
            assert socket.close_code() == 1012
        assert server.status(within=10) == 0
        assert time.monotonic() - start < DEADLINE + 6
        assert not server.orphans()


@both_signals
def test_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    """Case 40: and even then no answer looks whole."""
    with serve_process() as server, clients(server, LONG, each=1) as inside:
        server.signal(number)
        until(lambda: ask(server, "GET", "/ready").status == 503, within=2.0)
        start = time.monotonic()
        server.signal(number)
        assert server.status(within=5) == 128 + number
        assert time.monotonic() - start < 1.0
        assert not server.orphans()
        for stream in (*inside.events, *inside.texts):
            body, whole = rest_of_stream(stream)
            assert not whole
            assert b"[DONE]" not in body
        for socket in inside.sockets:
            with pytest.raises((Truncated, ConnectionError)):
                while (found := socket.frame())[0] == TEXT:
                    assert found[1].decode() != SENTINEL


@both_signals
def test_server_without_clients_ends_at_once(number: signal.Signals) -> None:
    """Case 40: connections that are open but idle keep nobody."""
    with serve_process() as server, Connection(server.address) as idle, Connection(server.address) as half:
        assert idle.request("GET", "/ready").answer().status == 200
        half.send(b"POST / HTTP/1.1\r\nContent-Le")
        server.signal(number)
        assert server.status(within=5) == 0
        assert idle.ended()
        assert not server.orphans()


def test_client_that_reads_nothing_does_not_hold_the_shutdown_up() -> None:
    """Case 40: the deadline is for slow readers too."""
    with (
        serve_process("--shutdown-deadline", "0.5") as server,
        Connection(server.address, receive_buffer=4096) as deaf,
    ):
        deaf.request("POST", "/", b"x" * 7000)
        until(lambda: gauge(server, "num_requests_running") == 1, within=5.0)
        server.signal(signal.SIGTERM)
        assert server.status(within=8) == 0


@pytest.mark.model
@pytest.mark.slow
def test_real_model_ends_with_its_streams_whole() -> None:
    """Case 40 on the default model."""
    with serve_process("--max-batch-size", "4", engine="openvino") as server, ExitStack() as stack:
        streams = [
            stack.enter_context(Connection(server.address, timeout=40)).request(
                "POST", "/v1/chat/completions", chat_body("Count.", stream=True, max_tokens=30, ignore_eos=True)
            )
            for _ in range(6)
        ]
        for stream in streams[:4]:
            first_text(stream)
        server.signal(signal.SIGTERM)
        check_draining(server)
        for number, stream in enumerate(streams):
            if number >= 4:
                stream.head()
            body, whole = rest_of_stream(stream)
            assert whole
            assert events(body)[-1] == "[DONE]"
        assert server.status(within=15) == 0
        assert not server.orphans()
