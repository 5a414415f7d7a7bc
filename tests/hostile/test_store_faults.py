"""The store is full, damaged, newer, taken or gone, on real processes: a named error, and nothing that looks whole."""

from __future__ import annotations

import json
import resource
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.cli.command import SCRIPTED, causerie, one_line
from tests.support.process import ServeProcess, serve_process
from tests.support.served import chat_body, until
from tests.support.stored import TERMINALS, Stream, Streaming, ask, made, read_again, said

pytestmark = pytest.mark.slow
LONG = "x" * 1500
"""The answer to it takes about 12 seconds."""
BULKY = {
    "input": [{"role": "user", "content": "y" * 3000} for _ in range(30)],
    "truncation": "auto",
    "max_output_tokens": 1,
}
"""Kept whole, however little of it the model reads."""
RUNNING = BULKY | {"background": True, "max_output_tokens": 6000, "ignore_eos": True}
"""Goes on for most of a minute."""


def start_fails(path: Path) -> str:
    """What a server says that cannot start on this store: one line, behind those that say what it starts."""
    done = causerie("serve", *SCRIPTED, "--port", "0", "--store", str(path))
    assert done.returncode == 1
    *introduction, error = done.stderr.splitlines(keepends=True)
    assert not [line for line in introduction if line.startswith((b"causerie:", b"Traceback", b" "))]
    return one_line(error)


def answering(socket: Connection, text: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """The frames that answer it, to the one that ends it."""
    socket.send(json.dumps({"type": "response.create", "input": text} | fields))
    kind = ""
    while kind not in (*TERMINALS, "error"):
        frame = json.loads(socket.recv(timeout=30))
        kind = frame["type"]
        yield frame


def check_file(path: Path) -> None:
    """Nothing in it is damaged, and nothing in it still counts as running."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM response WHERE status IS NULL").fetchone() == (0,)
    connection.close()


@contextmanager
def serving(path: Path, *options: str) -> Iterator[ServeProcess]:
    with serve_process("--store", str(path), *options) as server:
        yield server
        server.signal(signal.SIGTERM)
        assert server.status(within=20) == 0
    check_file(path)


def check_broken_off(stream: Stream, code: str) -> None:
    """It ended in band, once, as failed, with what it had said."""
    assert stream.whole and stream.end["status"] == "failed" and stream.end["error"]["type"] == code, stream.end
    assert said(stream.end) == stream.text


def check_others_are_served(server: ServeProcess) -> None:
    """Those who keep nothing notice nothing."""
    assert ask(server, "POST", "/v1/chat/completions", chat_body("Hi")).status == 200
    assert ask(server, "POST", "/v1/responses", {"input": "Hi", "store": False}).status == 200


def check_kept_as_failed(server: ServeProcess, stream: Stream) -> None:
    """Once the store takes something again, it has the response as the client saw it end."""
    until(lambda: ask(server, "GET", f"/v1/responses/{stream.id}").json() == stream.end, within=40)
    assert read_again(server, stream.id).events[-1] == stream.events[-1]


def test_damaged_newer_and_foreign_files_stop_the_start_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    with serving(path) as server:
        made(server, "/v1/responses", input="Hi")
    whole = path.read_bytes()
    path.write_bytes(b"no database at all, " * 500)
    assert "damaged" in start_fails(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in start_fails(path)
    path.write_bytes(whole[:4096] + b"\x55" * (len(whole) - 4096))
    assert "damaged" in start_fails(path)
    path.write_bytes(whole)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "newer causerie (schema 99" in start_fails(path)
    (tmp_path / "folder").mkdir()
    assert "--store" in start_fails(tmp_path / "folder")


def test_a_second_server_is_kept_out_and_the_first_does_not_notice(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    with serving(path) as server:
        running = Streaming(server, input="x" * 100)
        running.begun()
        assert "Another process uses this store" in start_fails(path)
        assert running.finish().end["status"] == "completed"


def test_a_full_store_lets_the_oldest_go_and_refuses_by_name_where_none_may(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    with serving(path, "--store-max-gib", "0.0009765625") as server:
        first, *_, last = [made(server, "/v1/responses", **BULKY)["id"] for _ in range(25)]
        assert ask(server, "GET", f"/v1/responses/{first}").status == 404
        assert ask(server, "GET", f"/v1/responses/{last}").status == 200
        talk = made(server, "/v1/conversations")["id"]
        endless: dict[str, Any] = {"input": LONG, "max_output_tokens": 6000, "ignore_eos": True}
        running = [Streaming(server, **endless), Streaming(server, **endless, conversation=talk)]
        for stream in running:
            stream.begun()
        bulky = []
        while (answer := ask(server, "POST", "/v1/responses", RUNNING)).status == 200:
            bulky.append(answer.json()["id"])
        assert answer.status == 507 and answer.error["code"] == "store_full"
        check_others_are_served(server)
        failed = [stream.finish() for stream in running]
        for each in failed:
            check_broken_off(each, "store_full")
        for id_ in bulky[:2]:
            assert ask(server, "DELETE", f"/v1/responses/{id_}").status == 200
        # Now there is room for the ends of the others, and then these may go too.
        until(lambda: ask(server, "POST", "/v1/responses", {"input": "Hi"}).status == 200, within=40)
        for each in failed:
            found = ask(server, "GET", f"/v1/responses/{each.id}")
            assert found.status == 404 or found.json() == each.end
        assert ask(server, "POST", "/v1/responses", {"input": "Hi", "conversation": talk}).status in (200, 404)


def test_a_disk_that_takes_no_more_ends_streams_truthfully_until_it_does(tmp_path: Path) -> None:
    """The kernel refuses to let the server's files grow, as a full disk or a quota does."""
    path = tmp_path / "responses.sqlite3"
    with serving(path) as server:
        talk = made(server, "/v1/conversations")["id"]
        before = made(server, "/v1/responses", input="Hi")
        running = [Streaming(server, input=LONG), Streaming(server, input=LONG, conversation=talk)]
        for stream in running:
            stream.begun()
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1024, hard))
        for stream in running:
            check_broken_off(stream.finish(), "store_unavailable")
        check_others_are_served(server)
        refused = ask(server, "POST", "/v1/responses", {"input": "Hi"})
        assert refused.status == 503 and refused.error["code"] == "store_unavailable"
        assert ask(server, "GET", f"/v1/responses/{before['id']}").json() == before
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))
        for stream in running:
            check_kept_as_failed(server, stream.stream)
        assert made(server, "/v1/responses", input="Hi", conversation=talk)["status"] == "completed"


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    folder, away = tmp_path / "store", tmp_path / "away"
    path = folder / "responses.sqlite3"
    with serving(path) as server:
        running = Streaming(server, input=LONG)
        running.begun()
        folder.rename(away)
        check_broken_off(running.finish(), "store_unavailable")
        check_others_are_served(server)
        refused = ask(server, "POST", "/v1/responses", {"input": "Hi", "stream": True})
        assert refused.status == 503 and refused.error["code"] == "store_unavailable"
        assert str(tmp_path) not in refused.error["message"]
        away.rename(folder)
        check_kept_as_failed(server, running.stream)
        made(server, "/v1/responses", input="Hi")


def test_a_file_that_was_deleted_is_told_and_a_restart_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    with serve_process("--store", str(path)) as server:
        running = Streaming(server, input=LONG)
        running.begun()
        host, port = server.address
        with connect(f"ws://{host}:{port}/v1/responses") as socket:
            frames = answering(socket, LONG)
            while next(frames)["type"] != "response.output_text.delta":
                pass
            for file in tmp_path.iterdir():
                file.unlink()
            *_, last = frames
            assert last["type"] == "response.failed" and last["response"]["error"]["type"] == "store_unavailable"
            *_, refused = answering(socket, "Hi")
            assert refused["error"]["code"] == "store_unavailable"
            *_, last = answering(socket, "Hi", store=False)
            assert last["type"] == "response.completed"
        check_broken_off(running.finish(), "store_unavailable")
        assert "Restart the server" in running.stream.end["error"]["message"]
        check_others_are_served(server)
        server.signal(signal.SIGTERM)
        assert server.status(within=20) == 0
    with serving(path) as server:
        made(server, "/v1/responses", input="Hi")
