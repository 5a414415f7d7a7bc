"""Connections that are cut in the middle, between a real client and a real server: every character exactly once."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from causerie.chat.service import ChatService
from causerie.client import AsyncAnswer, AsyncClient, Patience, retry
from causerie.client.server import Cut
from causerie.errors import ConnectionLost, Interrupted
from tests.support.fault_proxy import Fault, FaultProxy, Way, faults
from tests.support.process import serve_process
from tests.support.server import running_server
from tests.support.service import endless, says, service_with, until_idle

ANSWER = "Ein Löwe 🦁 läuft durch den Wald, und »niemand« weiß, wohin er geht.\n" * 3
WAYS = ("text", "chat", "conversation")
QUICK = Patience(connect=5, silence=10, reconnect=5)


def resets(*cuts: int) -> Callable[[], Fault]:
    """After so many bytes of the answer, connection by connection; then none."""
    left = iter(cuts)
    return lambda: Fault(None) if (after := next(left, None)) is None else Fault(Way.RESET, after)


@asynccontextmanager
async def cut_client(
    service: ChatService, plan: Callable[[], Fault], patience: Patience = QUICK
) -> AsyncGenerator[tuple[AsyncClient, FaultProxy], None]:
    async with asyncio.timeout(60), running_server(service) as url:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        async with FaultProxy((parts.hostname, parts.port), plan) as proxy:
            host, port = proxy.address
            async with AsyncClient(f"{host}:{port}", patience=patience) as client:
                yield client, proxy


async def ask(client: AsyncClient, way: str, text: str = "Hi") -> AsyncAnswer:
    if way == "text":
        return client.text(text)
    if way == "chat":
        return await client.chat().send(text)
    return await client.chat(conversation=await client.create_conversation()).send(text)


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_survives_cuts_anywhere(way: str) -> None:
    """Connection by connection, a few bytes to a few events each: in heads, in the middle of characters, at ends."""
    service = service_with(says(ANSWER), step_seconds=0.003)
    async with cut_client(service, resets(2500, 30, 500, 280, 450, 340)) as (client, proxy):
        answer = await ask(client, way)
        assert await answer.read() == ANSWER
        assert proxy.cuts.total() >= 3
        assert answer.usage is not None and answer.usage.completion_tokens == len(ANSWER.encode()) + 1
        await until_idle(service)


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_survives_cuts_of_every_kind(way: str) -> None:
    """Resets, ends in either direction, connections that fall silent; in requests, too."""
    service = service_with(says(ANSWER), step_seconds=0.003)
    patience = Patience(connect=5, silence=0.5, reconnect=10)
    async with cut_client(service, faults(way, 8, mean=600.0), patience) as (client, proxy):
        assert await (await ask(client, way)).read() == ANSWER
        assert proxy.cuts.total() >= 3
        await until_idle(service)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [1, 250, 500])
async def test_an_answer_whose_beginning_got_lost_is_given_once(way: str, cut: int) -> None:
    """The request was carried out, and the client never learned so."""
    asked: list[bytes] = []

    def script(prompt: Any) -> Any:
        asked.append(bytes(byte for byte in prompt if byte < 256))
        return ANSWER.encode()

    service = service_with(script)
    async with cut_client(service, resets(cut, cut)) as (client, proxy):
        assert await (await ask(client, way)).read() == ANSWER
        assert proxy.cuts.total() == 2 and len(asked) == 1


async def test_a_conversation_whose_turns_are_cut_has_each_turn_once() -> None:
    service = service_with(lambda prompt: [byte for byte in prompt if byte < 256])
    async with cut_client(service, resets(1, 1, 300, 900, 1, 500, 1, 1200)) as (client, proxy):
        chat = client.chat(conversation=await client.create_conversation())
        await (await chat.send("One")).read()
        said = await (await chat.send("Two")).read()
        assert said.count("user\nOne") == 2 and said.count("user\nTwo") == 1  # The first answer repeats the first turn.
        assert proxy.cuts.total() >= 3


@pytest.mark.parametrize("way", WAYS[:2])
async def test_a_server_that_stays_away_is_given_up(way: str) -> None:
    service = service_with(endless, step_seconds=0.002)
    patience = Patience(connect=5, silence=1, reconnect=0.5)
    async with cut_client(service, lambda: Fault(Way.RESET, 2500), patience) as (client, proxy):
        answer = await ask(client, way)
        heard = await anext(answer)
        await proxy.__aexit__()
        with pytest.raises(ConnectionLost, match=r"not found again within 0\.5 seconds"):
            while True:
                heard += await anext(answer)
        assert set(heard) == {"a"}
        await until_idle(service, 5)  # Its grace of 1.5 seconds is over.


@pytest.mark.parametrize("way", WAYS[:2])
async def test_a_server_whose_every_answer_is_cut_behind_its_head_is_given_up(way: str) -> None:
    """As by a proxy that takes the connection for a server that is not there."""
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head + b"content-length: 0")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with AsyncClient(f"{host}:{port}", patience=Patience(connect=5, silence=5, reconnect=1)) as client:
            with pytest.raises(ConnectionLost, match="not found again within 1 seconds"):
                await (await ask(client, way)).read()
        assert 3 <= asked <= 6


class Plan:
    """A stream by a plan, on a clock that nobody waits for: connections as seconds until each is cut, and their events.

    None is no connection.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *connections: tuple[float, int] | None) -> None:
        self.now = 0.0
        self._left = iter(connections)
        loop = SimpleNamespace(time=lambda: self.now)
        clock = SimpleNamespace(get_running_loop=lambda: loop, sleep=self._sleep)
        monkeypatch.setattr(retry, "asyncio", clock)

    async def open(self) -> AsyncGenerator[str, None]:
        connection = next(self._left, (0, -1))
        if connection is None:
            raise ConnectionLost("nobody there")
        seconds, events = connection
        yield ""
        if events < 0:
            return
        self.now += seconds
        for _ in range(events):
            yield "a"
        raise Cut("cut")

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds


WAITING: list[tuple[float, int] | None] = [(40, 0), None, None, None, None]


@pytest.mark.parametrize(
    ("connections", "heard"),
    [
        pytest.param([(0, 1), (0, 0), (0, 0), (0, 0)], 1, id="lost for a moment"),
        pytest.param([(0, 1)] * 100, 100, id="an event each time"),
        pytest.param([(0, 0), (0, 0), (3, 0), (3, 0), (0, 0)], 0, id="what was connected was not lost"),
        pytest.param([(0, 0), *WAITING * 20], 0, id="waits long for its turn, with losses"),
        pytest.param([(0, 1)] + [(0, 0)] * 100, None, id="cut behind every head"),
        pytest.param([(0, 1)] + [(0.1, 0)] * 100, None, id="cut soon behind every head"),
    ],
)
async def test_patience_is_for_what_is_lost_and_not_for_what_waits(
    monkeypatch: pytest.MonkeyPatch, connections: list[tuple[float, int] | None], heard: int | None
) -> None:
    plan = Plan(monkeypatch, *connections)
    pieces = retry.picked_up(plan, Patience(reconnect=5))
    if heard is None:
        with pytest.raises(ConnectionLost):
            _ = [piece async for piece in pieces]
        assert plan.now < 10
    else:
        assert len([piece async for piece in pieces if piece]) == heard


async def test_an_answer_is_cancelled_over_a_connection_that_is_cut() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with cut_client(service, resets(2500, 1, 1, 1)) as (client, proxy):
        for way in WAYS[:2]:
            answer = await ask(client, way)
            await anext(answer)
            await answer.cancel()
            await until_idle(service)
            assert set(await answer.read()) <= {"a"}
        assert proxy.cuts.total() >= 3


@pytest.mark.slow
async def test_a_server_that_is_killed_and_comes_back_tells_what_became_of_the_answer(tmp_path: Path) -> None:
    """With what was delivered still there, and the conversation to be continued."""
    options = ("--store", str(tmp_path / "store.db"))
    patience = Patience(connect=5, silence=10, reconnect=30)
    async with asyncio.timeout(60):
        with serve_process(*options) as first:
            async with AsyncClient(first.url, patience=patience) as client:
                chat = client.chat()
                answer = await chat.send("Hello there")
                heard = await anext(answer)
                first.signal(signal.SIGKILL)
                first.status(within=10)
                with serve_process(*options, "--port", str(first.address[1])):
                    with pytest.raises(Interrupted):
                        while True:
                            heard += await anext(answer)
                    assert "You said: Hello there".startswith(heard[:10])
                    assert "And now?" in await (await chat.send("And now?")).read()
