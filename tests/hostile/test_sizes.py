"""Bodies and prompts that are too large or lie about their size: cases 26, 27 and 30, promise 4."""

from __future__ import annotations

import itertools
import select
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.hostile.conftest import Serve
from tests.support.process import ServeProcess, memory_peak, reset_memory_peak, serve_process
from tests.support.raw import Connection
from tests.support.served import Served, chat_body, metric_of, until

MIB = 2**20
ROUTES = ["/", "/v1/chat/completions", "/v1/completions"]
HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n"


@pytest.fixture(scope="module")
def process() -> Iterator[ServeProcess]:
    """The real process, so that its memory is its own."""
    with serve_process("--max-body-bytes", "262144") as running:
        with Connection(running.address) as client:
            assert client.request("POST", "/", b"Hi").answer().status == 200
        yield running
        with Connection(running.address) as client:
            page = client.request("GET", "/metrics").answer().body
        assert (metric_of(page, "num_requests_running"), metric_of(page, "num_requests_waiting")) == (0, 0)


@pytest.fixture
def client(process: ServeProcess) -> Iterator[Connection]:
    """A connection to the process, whose memory is measured from here on."""
    reset_memory_peak(process.pid)
    with Connection(process.address) as connection:
        yield connection


def push(client: Connection, piece: bytes, *, until_answered: bool = False) -> int:
    """Send ``piece`` over and over; how many bytes went out until the server answered or closed, 100 MB at most."""
    sent = 0
    try:
        while sent < 100 * MIB and not (until_answered and select.select([client.socket], [], [], 0)[0]):
            client.send(piece)
            sent += len(piece)
    except (ConnectionError, TimeoutError):
        return sent
    return sent


@pytest.mark.parametrize("path", ROUTES)
def test_body_of_100_mb_is_refused_before_it_is_sent(process: ServeProcess, client: Connection, path: str) -> None:
    """Case 27: 413 at the Content-Length alone."""
    before = memory_peak(process.pid)
    client.send(HEAD % (path.encode(), b"Content-Length: 104857600"))
    status, headers = client.head()
    assert (status, headers["connection"]) == (413, "close")
    assert memory_peak(process.pid) - before < 4 * MIB


def test_body_of_100_mb_that_is_sent_all_the_same_is_not_kept(process: ServeProcess, client: Connection) -> None:
    """Case 27: what comes after the refusal is read and dropped for a moment, and then the connection ends."""
    before = memory_peak(process.pid)
    client.send(HEAD % (b"/", b"Content-Length: 104857600"))
    client.head()
    start = time.monotonic()
    push(client, b"x" * 65536)
    client.rest()
    assert time.monotonic() - start < 8.0
    assert memory_peak(process.pid) - before < 16 * MIB


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("size", [1, 65536])
def test_endless_chunks_are_refused_at_the_cap(process: ServeProcess, client: Connection, path: str, size: int) -> None:
    """Case 27: 413 once the cap is passed; what had come is not kept twice over."""
    before = memory_peak(process.pid)
    client.send(HEAD % (path.encode(), b"Transfer-Encoding: chunked"))
    push(client, (b"%x\r\n" % size + b"x" * size + b"\r\n") * (65536 // size), until_answered=True)
    status, headers = client.head()
    assert (status, headers["connection"]) == (413, "close")
    assert memory_peak(process.pid) - before < 16 * MIB


ENDLESS = {
    "header": (b"POST / HTTP/1.1\r\nX: ", b"x" * 65536),
    "headers": (b"POST / HTTP/1.1\r\n", b"X: y\r\n" * 10_000),
    "request line": (b"POST /", b"x" * 65536),
    "blank lines": (b"", b"\r\n" * 32768),
    "chunk extension": (HEAD % (b"/", b"Transfer-Encoding: chunked") + b"1;", b"x" * 65536),
    "trailer": (HEAD % (b"/", b"Transfer-Encoding: chunked") + b"2\r\nHi\r\n0\r\nX: ", b"x" * 65536),
    "trailers": (HEAD % (b"/", b"Transfer-Encoding: chunked") + b"2\r\nHi\r\n0\r\n", b"X: y\r\n" * 10_000),
}


@pytest.mark.parametrize(("start", "piece"), ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_is_cut_off_in_bounded_memory(
    process: ServeProcess, client: Connection, start: bytes, piece: bytes
) -> None:
    """Cases 27 and 30: whatever part of a request has no end."""
    before = memory_peak(process.pid)
    client.send(start)
    assert push(client, piece) < 100 * MIB, "the server took it all"
    assert memory_peak(process.pid) - before < 16 * MIB


LENGTHS = {
    "negative": b"Content-Length: -1",
    "signed": b"Content-Length: +2",
    "hexadecimal": b"Content-Length: 0x2",
    "fraction": b"Content-Length: 2.0",
    "words": b"Content-Length: two",
    "empty": b"Content-Length: ",
    "two that differ": b"Content-Length: 2\r\nContent-Length: 3",
    "list": b"Content-Length: 2, 3",
    "with chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked",
    "chunks that are not the last coding": b"Transfer-Encoding: chunked, identity",
    "unknown coding": b"Transfer-Encoding: sideways",
    "40 digits": b"Content-Length: " + b"9" * 40,
}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_length_that_makes_no_sense_is_refused_and_the_connection_closed(client: Connection, length: bytes) -> None:
    """Cases 27 and 30: nothing after it can be trusted to be a request."""
    client.send(HEAD % (b"/", length) + b"Hi")
    answer = client.answer()
    assert answer.status in (400, 413)
    assert answer.error["type"] == "invalid_request_error"
    assert client.ended()


BAD_CHUNKS = [
    b"xyz\r\n",
    b"-1\r\n",
    b"ffffffffffffffffff\r\n",
    b"2\r\nHixx\r\n",
    b"2\nHi\n0\n\n",
    b" 2\r\nHi\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("chunk", BAD_CHUNKS)
def test_bad_chunk_is_refused_and_the_connection_closed(client: Connection, chunk: bytes) -> None:
    """Cases 27 and 30."""
    client.send(HEAD % (b"/", b"Transfer-Encoding: chunked") + chunk)
    answer = client.answer()
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert client.ended()


@pytest.mark.parametrize("path", ROUTES)
def test_body_shorter_than_it_said_never_reaches_the_model(serve: Serve, path: str) -> None:
    """Case 27, a Content-Length that says more: left or late, half a body is no request."""
    server = serve(lambda _: b"ok", {"body_timeout": 0.5})
    half = b'{"messages":[{"role":"user","content":"secret"}],"prompt":"secret"}'
    for leave in (Connection.reset, Connection.close, Connection.half_close):
        leave(server.connect().send(HEAD % (path.encode(), b"Content-Length: 1000") + half))
    late = server.connect().send(HEAD % (path.encode(), b"Content-Length: 1000") + half)
    start = time.monotonic()
    answer = late.answer()
    assert answer.status == 408
    assert answer.error["code"] == "request_timeout"
    assert time.monotonic() - start < 5.0
    assert late.ended()
    assert not server.watch.prompts


def test_body_longer_than_it_said_is_not_part_of_the_prompt(serve: Serve) -> None:
    """Case 27, a Content-Length that says less."""
    server = serve(lambda _: b"ok", step_seconds=0.01)
    client = server.connect().send(HEAD % (b"/", b"Content-Length: 2") + b"Hi, and this is too much")
    answer = client.answer()
    assert (answer.status, answer.body) == (200, b"ok")
    rest = client.rest()
    assert not rest or rest.startswith(b"HTTP/1.1 400 ")
    assert [bytes(id_ for id_ in ids if id_ < 256)[5:7] for ids in server.watch.prompts.values()] == [b"Hi"]


def test_garbage_after_a_request_never_gets_into_its_answer(serve: Serve) -> None:
    """Case 27: what follows a request may be refused, but not in the middle of its answer."""
    server = serve(lambda _: b"a long answer, told slowly", step_seconds=0.005)
    for garbage in (
        b"\0\0\0",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        b"x" * 200_000,
    ):
        client = server.say()
        until(lambda: server.service.running == 1, within=5.0)
        client.send(garbage)
        assert client.answer().body == b"a long answer, told slowly"


@pytest.mark.model
class TestContextWindow:
    def test_prompt_over_the_window_is_refused_with_both_numbers(self, real: Served) -> None:
        """Case 26, on every surface."""
        text = "word " * 9000
        requests: dict[str, bytes | dict[str, Any]] = {
            "/": text.encode(),
            "/v1/chat/completions": chat_body(text, stream=True),
            "/v1/completions": {"prompt": text},
        }
        for path, body in requests.items():
            answer = real.ask("POST", path, body)
            assert answer.status == 400, path
            assert answer.error["code"] == "context_length_exceeded"
            assert answer.error["param"] == ("messages" if "chat" in path else "prompt")
            assert "8192" in answer.error["message"]
            numbers = [int(word.strip(".,")) for word in answer.error["message"].split() if word.strip(".,").isdigit()]
            assert any(8192 < number < 9100 for number in numbers), numbers
        assert real.socket().text(text).close_code() == 1009
        assert not [ids for ids in real.watch.prompts.values() if len(ids) > 8192]

    def test_token_ids_over_the_window_are_refused(self, real: Served) -> None:
        """Case 26: at the window's very edge too, where one token has to be left for the answer."""
        ids = list(itertools.islice(itertools.cycle(range(1000, 1100)), 8192))
        refused = real.ask("POST", "/v1/completions", {"prompt": ids})
        assert refused.error["code"] == "context_length_exceeded"
        accepted = real.ask("POST", "/v1/completions", {"prompt": ids[:200], "max_tokens": 1})
        assert accepted.json()["usage"]["prompt_tokens"] == 200

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["word " * 800_000, "é\U0001f600 1" * 380_000, "<|im_end|>" * 400_000])
    def test_loop_does_not_stall_while_four_megabytes_are_tokenised(self, real: Served, text: str) -> None:
        """Case 26: nobody else's tokens wait for it. The best of three, since the machine may be busy otherwise."""
        body = orjson.dumps(chat_body(text))
        stalls = []
        for _ in range(3):
            with real.heart() as heart:
                answer = real.connect(timeout=60).request("POST", "/v1/chat/completions", body).answer()
            assert answer.status == 400
            assert answer.error["code"] == "context_length_exceeded"
            stalls.append(heart.longest_stall)
            if stalls[-1] < 0.05:
                return
        raise AssertionError(f"the event loop stood still for {min(stalls):.3f} s")
