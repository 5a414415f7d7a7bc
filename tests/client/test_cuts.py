"""Connections that are cut in the middle, between a real client and a real server: every character exactly once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from causerie.chat.service import ChatService
from causerie.client import AsyncAnswer, AsyncClient, Patience
from causerie.errors import ConnectionLost, Interrupted
from tests.client.cutting import CuttingProxy, cutting
from tests.support.process import serve_process
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until_idle

ANSWER = "Ein Löwe 🦁 läuft durch den Wald, und »niemand« weiß, wohin er geht.\n" * 3
WAYS = ("text", "chat", "conversation")
QUICK = Patience(connect=5, silence=10, reconnect=5)


@asynccontextmanager
async def cut_client(
    service: ChatService, cuts: Iterable[int], patience: Patience = QUICK
) -> AsyncGenerator[tuple[AsyncClient, CuttingProxy], None]:
    async with (
        asyncio.timeout(60),
        running_server(service) as url,
        cutting(url, cuts) as proxy,
        AsyncClient(proxy.url, patience=patience) as client,
    ):
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
    async with cut_client(service, [2500, 30, 500, 280, 450, 340]) as (client, proxy):
        answer = await ask(client, way)
        assert await answer.read() == ANSWER
        assert proxy.cut >= 3
        assert answer.usage is not None and answer.usage.completion_tokens == len(ANSWER.encode()) + 1
        await until_idle(service)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [0, 1, 250, 500])
async def test_an_answer_whose_beginning_got_lost_is_given_once(way: str, cut: int) -> None:
    """The request was carried out, and the client never learned so."""
    asked: list[bytes] = []

    def script(prompt: Any) -> Any:
        asked.append(bytes(byte for byte in prompt if byte < 256))
        return ANSWER.encode()

    service = service_with(script)
    async with cut_client(service, [cut, cut]) as (client, proxy):
        assert await (await ask(client, way)).read() == ANSWER
        assert proxy.cut == 2 and len(asked) == 1


async def test_a_conversation_whose_turns_are_cut_has_each_turn_once() -> None:
    service = service_with(lambda prompt: [byte for byte in prompt if byte < 256])
    async with cut_client(service, [0, 0, 300, 900, 1, 500, 0, 1200]) as (client, proxy):
        chat = client.chat(conversation=await client.create_conversation())
        await (await chat.send("One")).read()
        said = await (await chat.send("Two")).read()
        assert said.count("user\nOne") == 2 and said.count("user\nTwo") == 1  # The first answer repeats the first turn.
        assert proxy.cut >= 3


@pytest.mark.parametrize("way", WAYS[:2])
async def test_a_server_that_stays_away_is_given_up(way: str) -> None:
    service = service_with(endless, step_seconds=0.002)
    patience = Patience(connect=5, silence=1, reconnect=0.5)
    async with cut_client(service, [], patience) as (client, proxy):
        answer = await ask(client, way)
        heard = await anext(answer)
        proxy.target = None
        proxy.reset_all()
        with pytest.raises(ConnectionLost, match=r"not found again within 0\.5 seconds"):
            while True:
                heard += await anext(answer)
        assert set(heard) == {"a"}
        await until_idle(service, 5)  # Its grace of 1.5 seconds is over.


@pytest.mark.parametrize("way", WAYS[:2])
async def test_a_server_that_falls_silent_is_left_and_asked_anew(way: str) -> None:
    permits = Permits()
    permits.give(8)
    service = service_with(says(ANSWER), permits=permits.semaphore)
    patience = Patience(connect=5, silence=0.3, reconnect=5)
    async with cut_client(service, [], patience) as (client, _):
        answer = await ask(client, way)
        heard = await anext(answer)
        asyncio.get_running_loop().call_later(0.8, permits.give, 1000)
        assert heard + await answer.read() == ANSWER


async def test_an_answer_is_cancelled_over_a_connection_that_is_cut() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with cut_client(service, [2500, 1, 1, 1]) as (client, proxy):
        for way in WAYS[:2]:
            answer = await ask(client, way)
            await anext(answer)
            await answer.cancel()
            await until_idle(service)
            assert set(await answer.read()) <= {"a"}
        assert proxy.cut >= 3


@pytest.mark.slow
async def test_a_server_that_is_killed_and_comes_back_tells_what_became_of_the_answer(tmp_path: Path) -> None:
    """With what was delivered still there, and the conversation to be continued."""
    options = ("--store", str(tmp_path / "store.db"))
    patience = Patience(connect=5, silence=10, reconnect=30)
    async with asyncio.timeout(60):
        with serve_process(*options) as first:
            async with cutting(first.url) as proxy, AsyncClient(proxy.url, patience=patience) as client:
                chat = client.chat()
                answer = await chat.send("Hello there")
                heard = await anext(answer)
                first.signal(signal.SIGKILL)
                with serve_process(*options) as second:
                    proxy.target = second.url
                    with pytest.raises(Interrupted):
                        while True:
                            heard += await anext(answer)
                    assert heard and "You said: Hello there".startswith(heard[:10])
                    again = await (await chat.send("And now?")).read()
                    assert "And now?" in again
