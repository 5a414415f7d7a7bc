"""``causerie ask``: streams, joins what is piped in, and tells failure from success by its exit code."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.command import COMMAND, SCRIPTED, causerie, environment, one_line, running, serving

LONG = "tide " * 300
"""The scripted engine takes many seconds to say this back."""


def test_the_answer_is_plain_text_on_stdout() -> None:
    done = causerie("ask", *SCRIPTED, "hello")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"You said: hello.")
    assert done.stdout.endswith(b"\n")
    assert b"\x1b" not in done.stdout


def test_the_answer_comes_piece_by_piece() -> None:
    with running("ask", *SCRIPTED, "hello") as ask:
        ask.wait_for("You")
        first = time.monotonic()
        assert "this way" not in ask.stdout
        assert ask.end() == 0
        assert time.monotonic() - first > 0.2


def test_words_need_no_quotes() -> None:
    assert b"why is the sky blue" in causerie("ask", *SCRIPTED, "why", "is", "the", "sky", "blue").stdout


def test_piped_text_is_added_to_the_question() -> None:
    done = causerie("ask", *SCRIPTED, "Summarise:", stdin="Le café\n".encode())
    assert "You said: Summarise:\n\nLe café." in done.stdout.decode()


def test_piped_text_alone_is_the_question() -> None:
    assert b"You said: from a pipe." in causerie("ask", *SCRIPTED, stdin=b"from a pipe\n").stdout


def test_raw_text_is_continued_without_a_template() -> None:
    assert b"You said: Once." in causerie("ask", *SCRIPTED, "--raw", "Once").stdout


def test_the_output_limit_is_honoured() -> None:
    done = causerie("ask", *SCRIPTED, "--max-tokens", "8", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"You said\n", b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "There is no question"),
        (("--temperature", "nan", "hi"), "'temperature' must be a number from 0 to 2"),
        (("--temperature", "9", "hi"), "'temperature' must be a number from 0 to 2"),
        (("--seed", "1.5", "hi"), "'seed' must be an integer"),
        (("--max-tokens", "0", "hi"), "--max-tokens"),
        (("--tempature", "1", "hi"), "--temperature"),
        (("--raw", "--system", "Rhyme.", "hi"), "--raw"),
        (("--server", "localhost:1", "--engine", "openvino", "hi"), "--engine"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: tuple[str, ...], said: str) -> None:
    done = causerie("ask", *arguments)
    assert done.returncode == 2
    assert said in one_line(done.stderr)
    assert done.stdout == b""


def test_piped_bytes_that_are_no_text_are_refused() -> None:
    done = causerie("ask", *SCRIPTED, stdin=b"caf\xe9")
    assert done.returncode == 1
    assert "UTF-8" in one_line(done.stderr)


def test_ctrl_c_stops_the_answer_with_130() -> None:
    with running("ask", *SCRIPTED, LONG) as ask:
        ask.wait_for("You said: tide")
        assert ask.stop(signal.SIGINT) == 130
        assert ask.stderr == ""
        assert "this way" not in ask.stdout


def test_a_pipe_whose_reader_leaves_ends_it_quietly() -> None:
    command = subprocess.Popen(
        [*COMMAND, "ask", *SCRIPTED, LONG],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert command.stdout is not None and command.stderr is not None
    with command:
        assert command.stdout.read(3) == b"You"
        command.stdout.close()
        assert command.wait(60) == 141
        assert command.stderr.read() == b""


def test_a_failed_answer_is_no_success() -> None:
    done = causerie("ask", *SCRIPTED, "--max-tokens", "8", "x" * 9000)
    assert done.returncode == 1
    assert "context window" in one_line(done.stderr)


@pytest.mark.slow
def test_a_named_server_answers() -> None:
    with serving() as (_, url):
        for server in (url, url.removeprefix("http://"), url + "/v1/"):
            done = causerie("ask", "--server", server, "hello")
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout.startswith(b"You said: hello.")
        done = causerie("ask", "--raw", "Once", env=environment(CAUSERIE_SERVER=url))
        assert b"You said: Once." in done.stdout
        done = causerie("ask", "--server", url, "--max-tokens", "8", "hello")
        assert (done.returncode, done.stdout) == (0, b"You said\n")


def test_a_server_that_refuses_is_quoted() -> None:
    with serving() as (_, url):
        done = causerie("ask", "--server", url, "--model", "nobody/nothing", "hello")
    assert done.returncode == 1
    said = one_line(done.stderr)
    assert "404" in said and "nobody/nothing" in said


def test_bytes_that_are_no_text_are_refused() -> None:
    with serving() as (_, url):
        for where in (("--server", url), SCRIPTED):
            done = subprocess.run(
                [*COMMAND, "ask", *where, b"caf\xe9"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
            )
            assert (done.returncode, done.stdout) == (1, b"")
            assert "valid Unicode" in one_line(done.stderr)


def test_ctrl_c_leaves_the_server_free() -> None:
    with serving("--max-batch-size", "1", "--max-waiting", "0") as (_, url):
        with running("ask", "--server", url, LONG) as ask:
            ask.wait_for("You said: tide")
            assert ask.stop(signal.SIGINT) == 130
        done = causerie("ask", "--server", url, "hello")
        assert (done.returncode, done.stderr) == (0, b"")


def test_no_server_there_says_what_to_do() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = causerie("ask", "--server", f"127.0.0.1:{unused.getsockname()[1]}", "hello")
    assert done.returncode == 1
    assert "causerie serve" in one_line(done.stderr)


@contextmanager
def canned(body: bytes, content_type: str = "text/event-stream") -> Iterator[str]:
    """A server that gives one answer, whatever it is asked, and closes."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            # All of it is read, or closing would reset the connection.
            with connection, connection.makefile("rb") as asked:
                length = 0
                while (line := asked.readline().lower()).strip():
                    length = int(line.partition(b":")[2]) if line.startswith(b"content-length") else length
                asked.read(length)
                connection.sendall(head + body)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"Half an"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (CHUNK, "before its end"),
        (CHUNK + END, "before its end"),
        (CHUNK + b"data: [DONE]\n\n", "before its end"),
        (CHUNK + b'data: {"error":{"message":"out of memory"}}\n\n', "out of memory"),
        (CHUNK + b'data: {"weather":"fine"}\n\n', "no OpenAI stream"),
        (CHUNK + b"data: {\n\n", "no OpenAI stream"),
    ],
)
def test_an_answer_that_is_cut_off_is_no_success(body: bytes, said: str) -> None:
    with canned(body) as url:
        done = causerie("ask", "--server", url, "hello")
    assert (done.returncode, done.stdout) == (1, b"Half an\n")
    assert said in one_line(done.stderr)


def test_a_server_of_another_kind_is_recognised() -> None:
    with canned(b"<html>", "text/html") as url:
        done = causerie("ask", "--server", url, "hello")
    assert done.returncode == 1
    one_line(done.stderr)


def test_unusual_line_separators_in_the_answer_arrive() -> None:
    text = "one\u2028two\x85three"
    body = CHUNK.replace(b"Half an", text.encode()) + END + b": a comment\n\ndata: [DONE]\n\n"
    with canned(body) as url:
        done = causerie("ask", "--server", url, "hello")
    assert (done.returncode, done.stdout.decode()) == (0, text + "\n")
