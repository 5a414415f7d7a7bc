"""The server process: its port, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from causerie.config import Settings
from causerie.errors import ConfigError
from causerie.web.server import bind, url_of
from tests.support.http import RawResponse, chat_body, close_all, send

CHAT = "/v1/chat/completions"

PROGRAM = """
import sys, time
from causerie.chat.build import scripted_service
from causerie.config import Settings
from causerie.engines.scripted import ScriptedEngine
from causerie.web.server import serve

def script(prompt):
    for _ in range(int(sys.argv[1])):
        yield ord("a")

class Engine(ScriptedEngine):
    def start(self, deliver):
        print("loading", flush=True)
        time.sleep(float(sys.argv[3]))
        super().start(deliver)

def build():
    return scripted_service(settings, Engine(script, step_seconds=0.02))

settings = Settings(port=0, shutdown_deadline=float(sys.argv[2]))
serve(build, settings, on_ready=lambda url: print(url, flush=True))
"""


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.url = ""

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> tuple[int, str]:
        """The exit status and what was written to stderr."""
        _, errors = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, errors.decode()


@asynccontextmanager
async def server_process(length: int = 5, deadline: float = 5, load: float = 0) -> AsyncIterator[Process]:
    arguments = [str(length), str(deadline), str(load)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            server = Process(process)
            assert await server.line() == "loading"
            if not load:
                server.url = await server.line()
            yield server
    finally:
        close_all()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_full_collections_leave_out_what_was_there_before_the_first_request() -> None:
    program = PROGRAM.replace("print(url", "print(gc.get_freeze_count()").replace("import sys", "import gc, sys")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "5", "5", "0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        lines = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
    process.terminate()
    await process.communicate()
    assert lines[0] == "loading"
    assert int(lines[1]) > 10_000


async def started(url: str) -> RawResponse:
    response = await send(url, "POST", CHAT, chat_body(stream=True))
    assert await response.head() == 200
    await response.chunk()
    return response


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_lets_running_answers_finish(number: signal.Signals) -> None:
    async with server_process(length=40) as server:
        response = await started(server.url)
        server.signal(number)
        await asyncio.sleep(0.2)
        ready = await send(server.url, "GET", "/ready")
        assert await ready.head() == 503
        refused = await send(server.url, "POST", "/?prompt=x")
        assert await refused.head() == 503 and refused.headers["retry-after"]
        assert (await response.body()).endswith(b"data: [DONE]\n\n")
        assert await server.end() == (0, "")


async def test_answer_that_cannot_finish_gets_one_error_by_the_deadline() -> None:
    async with server_process(length=100_000, deadline=0.3) as server:
        stream, text = await started(server.url), await send(server.url, "POST", "/?prompt=x")
        await text.head()
        server.signal(signal.SIGTERM)
        body = await stream.body()
        assert body.count(b'"error"') == 1 and b"server_shutting_down" in body and b"[DONE]" not in body
        with pytest.raises(asyncio.IncompleteReadError):
            await text.body()
        assert await server.end() == (0, "")


async def test_idle_sockets_are_closed_with_a_reason() -> None:
    async with server_process() as server, connect(server.url.replace("http", "ws")) as socket:
        server.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012 and "shutting down" in caught.value.rcvd.reason
        assert await server.end() == (0, "")


async def test_busy_socket_has_its_answer_first() -> None:
    async with server_process(length=40) as server, connect(server.url.replace("http", "ws")) as socket:
        await socket.send("Hello")
        await socket.recv()
        server.signal(signal.SIGTERM)
        frames = []
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                frames.append(await socket.recv())
        assert frames[-1] == "<<Response Finished>>"
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        assert await server.end() == (0, "")


async def test_client_that_takes_nothing_does_not_hold_up_the_end() -> None:
    async with server_process(length=100_000, deadline=0.2) as server:
        response = await started(server.url)
        response.reader._transport.pause_reading()  # type: ignore[attr-defined]
        server.signal(signal.SIGTERM)
        assert await server.end() == (0, "")


async def test_second_signal_is_immediate() -> None:
    async with server_process(length=100_000, deadline=1000) as server:
        await started(server.url)
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        server.signal(signal.SIGTERM)
        assert await server.end() == (128 + signal.SIGTERM, "")


async def test_signal_while_the_model_loads_is_immediate() -> None:
    async with server_process(load=60) as server:
        server.signal(signal.SIGINT)
        assert await server.end() == (128 + signal.SIGINT, "")


async def test_port_is_taken_before_the_model_is_loaded() -> None:
    with contextlib.closing(bind(Settings(port=0))) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is in use.*--port {port + 1}"):
            bind(Settings(port=port))


async def test_second_server_on_one_port_never_builds_its_service() -> None:
    from causerie.web.server import serve

    def build() -> None:
        raise AssertionError

    with contextlib.closing(bind(Settings(port=0))) as sock, pytest.raises(ConfigError, match="in use"):
        serve(build, Settings(port=sock.getsockname()[1]))  # type: ignore[arg-type]


def test_port_of_the_system_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Root may take every port, so the kernel's refusal is played.
    monkeypatch.setattr("causerie.web.server.socket.socket.bind", refuse)
    with pytest.raises(ConfigError, match="--port 8000"):
        bind(Settings(port=1))


def test_host_that_is_not_ours_is_refused() -> None:
    for host in ("no.such.host.invalid", "192.0.2.1"):
        with pytest.raises(ConfigError, match="Cannot listen") as caught:
            bind(Settings(host=host, port=0, allow_anonymous=True))
        assert caught.value.param == "host"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_others_are_not_listened_to_without_keys(host: str) -> None:
    with pytest.raises(ConfigError, match=r"causerie keys add.*--allow-anonymous") as caught:
        bind(Settings(host=host, port=0))
    assert caught.value.param == "host"


@pytest.mark.parametrize("chosen", [{"allow_anonymous": True}, {"api_keys": "alice=0123456789abcdef"}])
def test_others_are_listened_to_when_that_is_said_or_keys_are_asked_for(chosen: dict[str, Any]) -> None:
    with contextlib.closing(bind(Settings(host="0.0.0.0", port=0, **chosen))) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


def test_url_is_one_that_a_client_can_use() -> None:
    with contextlib.closing(bind(Settings(host="0.0.0.0", port=0, allow_anonymous=True))) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize(("path", "protocols"), [("/v1/responses", None), ("/", [Subprotocol("causerie.chat.v1")])])
async def test_sockets_of_responses_are_closed_after_the_answers_that_they_give(
    path: str, protocols: list[Subprotocol] | None
) -> None:
    async with server_process(length=40) as server:
        url = server.url.replace("http", "ws") + path
        async with connect(url, subprotocols=protocols) as idle, connect(url, subprotocols=protocols) as busy:
            await busy.send('{"type": "response.create", "input": "Hello"}')
            while '"response.in_progress"' not in str(await busy.recv()):
                pass
            server.signal(signal.SIGTERM)
            for socket, last in ((idle, ""), (busy, '"response.completed"')):
                frames = [""]
                with pytest.raises(ConnectionClosed) as caught:
                    while True:
                        frames.append(str(await socket.recv()))
                assert last in frames[-1]
                assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        assert await server.end() == (0, "")
