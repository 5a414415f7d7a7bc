"""Streams that are cut again and again come whole: promise 8, on every protocol that can pick one up again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from urllib.parse import urlsplit

import pytest

from causerie.config import Settings
from tests.support.fault_proxy import FaultProxy, Way, faults
from tests.support.http import send
from tests.support.resuming import CLIENTS, Client, whole_text
from tests.support.server import running_server
from tests.support.service import says, service_with

ANSWER = "Ein Löwe 🦁 läuft durch den Wald und sagt: \n\ndata: [DONE]\n\n- 'na, wer da?' " * 4
PATIENCE = 0.4
WISHES = ("continue", "grace(30)", "continue", "grace(30)")


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_stream_that_is_cut_again_and_again_comes_whole(name: str) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    service = service_with(says(ANSWER), settings=Settings(engine="scripted"), step_seconds=0.001)
    cuts: Counter[Way] = Counter()
    async with asyncio.timeout(60), running_server(service) as url:
        while cuts.total() < 8:
            clients = [CLIENTS[name](f"{index}-{cuts.total()}", "Hi", wish) for index, wish in enumerate(WISHES)]
            cuts += sum(await asyncio.gather(*(cut_up(url, client, f"{seed}") for client in clients)), Counter())
            for client in clients:
                assert client.text == ANSWER
                stored = await send(url, "GET", client.where())
                assert await stored.head() == 200
                assert whole_text(client.where(), await stored.body()) == ANSWER


async def cut_up(url: str, client: Client, seed: str) -> Counter[Way]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    plan = faults(f"{seed} {client.id}", most=6, mean=len(ANSWER) * client.framing / 4)
    async with FaultProxy((parts.hostname, parts.port), plan) as proxy:
        await client.run(proxy.address, PATIENCE)
    return proxy.cuts
