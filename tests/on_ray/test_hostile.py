"""Hostile cases again, through Ray's proxy, on scripted engines: who leaves, at any moment, and who is too many.

39 and 40 are in ``test_product.py``, 39 without Ray in ``test_pool.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.on_ray.product import pids, replicas
from tests.support.raw import Answer, ChatSocket, Connection
from tests.support.ray_cluster import Bot, RayCluster, serve_run, until
from tests.support.scenarios import running, until_nothing_runs

pytestmark = pytest.mark.slow

PLACES, WAITING = 8, 4
LONG = "la " * 1300
"""The scripted engine says a turn back: this one for half a minute."""
FREED = 1.0


@pytest.fixture(scope="module")
def product(cluster: RayCluster) -> Iterator[Bot]:
    arguments = (
        "engine=scripted",
        "engines=2",
        f"max_batch_size={PLACES // 2}",
        f"max_waiting={WAITING}",
        "prefill_piece=8192",
    )
    with serve_run(cluster, "causerie.ray:build", *arguments) as product:
        product.ready()
        yield product


@pytest.fixture
def url(product: Bot) -> Iterator[str]:
    """The server, idle and well before and after."""
    until(lambda: len(replicas(product.url, "engine_steps")) == 2, 60)
    yield product.url
    until_nothing_runs(product.url, 5)
    answer = requests.post(product.url, data="Are you well?", timeout=20)
    assert answer.text == "You said: Are you well?. This is the scripted engine; it answers every turn this way."


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


Ask = Callable[[str], Connection]


@pytest.fixture
def ask(url: str) -> Iterator[Ask]:
    """Clients whose answers take long."""
    clients: list[Connection] = []

    def make(way: str) -> Connection:
        clients.append(ChatSocket(address(url)) if way == "socket" else Connection(address(url)))
        client = clients[-1]
        if isinstance(client, ChatSocket):
            return client.open().text(LONG)
        if way == "text":
            return client.request("POST", "/?max_tokens=4000", LONG.encode())
        body = {"prompt": LONG, "max_tokens": 4000, "stream": way == "events"}
        return client.request("POST", "/v1/completions", body)

    yield make
    for client in clients:
        client.close()


def first_text(client: Connection) -> None:
    if isinstance(client, ChatSocket):
        client.frame()
    else:
        assert client.head()[0] == 200
        assert client.chunk()


leavings = pytest.mark.parametrize("leave", [Connection.reset, Connection.close])


@leavings
@pytest.mark.parametrize("way", ["events", "text", "socket"])
def test_who_leaves_in_mid_stream_frees_its_place_within_a_second(
    url: str, ask: Ask, way: str, leave: Callable[[Connection], None]
) -> None:
    """Case 1."""
    client = ask(way)
    first_text(client)
    leave(client)
    until_nothing_runs(url, FREED)


@leavings
@pytest.mark.parametrize("way", ["events", "whole"])
def test_who_leaves_before_the_first_token_is_dropped(
    url: str, ask: Ask, way: str, leave: Callable[[Connection], None]
) -> None:
    """Case 2; and 4, where the answer is not streamed."""
    client = ask(way)
    if way == "whole":
        until(lambda: running(url), 5)
    leave(client)
    until_nothing_runs(url, FREED)


def fill(url: str, ask: Ask) -> list[Connection]:
    """Every place is taken; the clients that have them."""
    inside = [ask("events") for _ in range(PLACES)]
    until(lambda: sum(replicas(url, "num_requests_running").values()) == PLACES, 5)
    return inside


def test_who_leaves_the_queue_is_never_scheduled(url: str, ask: Ask) -> None:
    """Case 3."""
    given = sum(replicas(url, "engine_prompt_tokens").values())
    inside = fill(url, ask)
    waiting = [ask(way) for way in ("events", "text", "whole", "socket")]
    until(lambda: sum(replicas(url, "num_requests_waiting").values()) == WAITING, 5)
    for client in waiting:
        client.reset()
    until(lambda: sum(replicas(url, "num_requests_waiting").values()) == 0, FREED)
    for client in inside:
        client.close()
    until_nothing_runs(url, 5)
    assert sum(replicas(url, "engine_prompt_tokens").values()) <= given + PLACES * len(LONG)


def test_200_that_connect_and_reset_leak_nothing(url: str, ask: Ask, cluster: RayCluster) -> None:
    """Case 5."""

    def open_files() -> int:
        processes = pids(cluster, "Ingress") + pids(cluster, "Engine")
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes)

    def come_and_go(number: int) -> None:
        client = ask(("events", "text", "whole")[number % 3])
        time.sleep(number % 10 / 50)
        client.reset()

    before = open_files()
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(come_and_go, range(200)))
    until_nothing_runs(url, 5)
    until(lambda: open_files() < before + 10, 10)


def test_fifty_over_capacity_and_queue_are_refused_and_nobody_else(url: str, ask: Ask) -> None:
    """Case 9."""

    def come_late(_: int) -> Answer:
        with Connection(address(url)).request("POST", "/", b"Hi") as late:
            return late.answer()

    inside = fill(url, ask) + [ask("events") for _ in range(WAITING)]
    until(lambda: sum(replicas(url, "num_requests_waiting").values()) == WAITING, 5)
    with ThreadPoolExecutor(10) as pool:
        for answer in pool.map(come_late, range(50)):
            assert (answer.status, answer.error["code"]) == (429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
    for client in inside[:PLACES]:
        first_text(client)
