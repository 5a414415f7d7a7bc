"""The product on a real Ray Serve, on the default model: started as its users start it, and then hurt."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.ray_cluster import EXAMPLES, SERVE, Bot, RayCluster, serve_run, until
from tests.support.scenarios import FINISHED, SCENARIOS, Scenario, converse, until_nothing_runs

pytestmark = [pytest.mark.model, pytest.mark.slow]


ARGUMENTS = ("engines=2", "max_batch_size=16", "max_waiting=4", "shutdown_deadline=120")


@pytest.fixture(scope="module")
def cluster(default_folder: object) -> Iterator[RayCluster]:
    cluster = RayCluster(cpus=4)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def product(cluster: RayCluster) -> Iterator[Bot]:
    with serve_run(cluster, "causerie.ray:build", *ARGUMENTS) as product:
        product.ready()
        yield product


@pytest.fixture
def url(product: Bot) -> Iterator[str]:
    """The server, whole and idle before and after."""
    until(lambda: len(replicas(product.url, "engine_steps")) == 2, 60)
    until_nothing_runs(product.url, 10)
    yield product.url


def replicas(url: str, metric: str) -> dict[str, float]:
    """What each replica says of a metric."""
    page = requests.get(f"{url}/metrics", timeout=20).text
    found = re.findall(rf'^causerie:{metric}{{.*?replica="(\w+)"}} (\S+)$', page, re.MULTILINE)
    return {replica: float(value) for replica, value in found}


def socket_url(url: str, query: str = "") -> str:
    return url.replace("http", "ws", 1) + "/" + query


def pids(cluster: RayCluster, deployment: str) -> list[int]:
    found = []
    for pid in cluster.processes():
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if f"ServeReplica:default:{deployment}".encode() in title:
            found.append(pid)
    return found


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_scenario(url: str, scenario: Scenario) -> None:
    scenario(url)


def story(url: str, tokens: int = 4000) -> requests.Response:
    return requests.post(f"{url}/?max_tokens={tokens}&ignore_eos=true", data="Hi", stream=True, timeout=60)


def test_metrics_of_all_replicas_are_on_one_page(url: str, cluster: RayCluster) -> None:
    assert len(replicas(url, "engine_steps")) == len(pids(cluster, "Engine")) == 2
    assert len(replicas(url, "num_requests_running")) == len(pids(cluster, "Ingress")) == 1


def test_too_many_are_refused_as_in_one_process(url: str) -> None:
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: story(url, 60), range(40)))
    full = [answer for answer in answers if answer.status_code == 429]
    assert len(full) == 40 - 2 * 16 - 4
    for answer in full:
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "overloaded"
    for answer in answers:
        answer.close()
    until_nothing_runs(url, 5)


def test_many_choices_and_many_waiters_all_get_their_turn(url: str) -> None:
    def ask(_: int) -> int:
        body = {"prompt": "Once", "n": 8, "max_tokens": 12, "ignore_eos": True}
        answer = requests.post(f"{url}/v1/completions", json=body, timeout=60)
        return len(answer.json()["choices"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [8] * 8


def test_full_engines_still_say_how_they_are(url: str) -> None:
    streams = [story(url, 1000) for _ in range(32)]
    assert len(replicas(url, "engine_steps")) == 2
    assert requests.get(f"{url}/health", timeout=20).status_code == 200
    for stream in streams:
        stream.close()


def test_a_message_over_the_limit_closes_the_socket_also_where_the_proxy_lets_it_through(url: str) -> None:
    with connect(socket_url(url), max_size=None) as chat:
        chat.send("x" * 2**20 + "x")
        with pytest.raises(ConnectionClosed) as closed:
            chat.recv(20)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_200_clients_that_leave_at_once_leak_nothing(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = b"Tell me a story."
    head = f"POST /?max_tokens=2000&ignore_eos=true HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"

    def come_and_go(number: int) -> None:
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + body)
            time.sleep(number % 10 / 50)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(come_and_go, range(200)))
    until_nothing_runs(url, 5)
    assert story(url, 5).text


def test_a_conversation_goes_on_where_its_prefix_is(url: str) -> None:
    known, given = replicas(url, "engine_prompt_tokens_known"), replicas(url, "engine_prompt_tokens")
    converse(url, *(f"Tell me more about the number {number}. " * 25 for number in range(6)))
    grown = {replica: value - given[replica] for replica, value in replicas(url, "engine_prompt_tokens").items()}
    reused = {replica: value - known[replica] for replica, value in replicas(url, "engine_prompt_tokens_known").items()}
    assert sum(reused.values()) > 0.6 * sum(grown.values())


def test_a_killed_engine_ends_its_streams_with_one_error_and_the_pool_recovers(url: str, cluster: RayCluster) -> None:
    body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    streams = [requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=60) for _ in range(4)]
    lines = [stream.iter_lines() for stream in streams]
    for each in lines:
        assert next(each).startswith(b"data:")
    for pid in pids(cluster, "Engine"):
        os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    for each in lines:
        rest = [line for line in each if line]
        assert rest[-1].startswith(b'data: {"error"'), rest[-3:]
        assert sum(b'"error"' in line for line in rest) == 1
        assert b"data: [DONE]" not in rest
    assert time.monotonic() - begin < 5
    assert story(url, 5).text


def test_a_killed_ingress_is_a_cut_that_nobody_takes_for_an_end(url: str, cluster: RayCluster) -> None:
    stream = story(url)
    pieces = stream.iter_content(None)
    next(pieces)
    with connect(socket_url(url, "?ignore_eos=true&max_tokens=4000")) as chat:
        chat.send("Hi")
        chat.recv(60)
        (pid,) = pids(cluster, "Ingress")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            while chat.recv(60) != FINISHED:
                pass
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(pieces)
    until(lambda: requests.get(f"{url}/ready", timeout=30).status_code == 200, 60)
    assert story(url, 5).text
    until_nothing_runs(url, 15)


@pytest.mark.parametrize(
    ("argument", "said"), [("modle=x", "Did you mean model?"), ("engines=0", "a number from 1"), ("port=9", "On Ray")]
)
def test_a_wrong_argument_is_one_line(cluster: RayCluster, argument: str, said: str) -> None:
    done = subprocess.run(
        [SERVE, "run", f"--address={cluster.address}", "causerie.ray:build", argument],
        cwd=EXAMPLES,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rolling_update_cuts_no_stream_that_can_finish_and_closes_idle_sockets(url: str, cluster: RayCluster) -> None:
    """Case 40: what SIGTERM is to one process."""
    body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    before = set(pids(cluster, "Engine") + pids(cluster, "Ingress"))
    with ThreadPoolExecutor(1) as pool, connect(socket_url(url)) as idle, connect(socket_url(url)) as busy:
        streams = [requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=60) for _ in range(4)]
        busy.send("Hi")
        busy.recv(60)
        updated = pool.submit(deploy, cluster, "max_tokens=512")
        for chat in (idle, busy):
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    last = chat.recv(90)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert last == FINISHED
        for stream in streams:
            lines = [line for line in stream.iter_lines() if line]
            assert lines[-1] == b"data: [DONE]", lines[-3:]
            assert b'"completion_tokens":400' in lines[-2]
        updated.result()
    until(lambda: before.isdisjoint(pids(cluster, "Engine") + pids(cluster, "Ingress")), 60)
    assert story(url, 5).text


def deploy(cluster: RayCluster, *arguments: str) -> None:
    """The same application again, with other arguments."""
    subprocess.run(
        [SERVE, "run", f"--address={cluster.address}", "--non-blocking", "causerie.ray:build", *ARGUMENTS, *arguments],
        cwd=EXAMPLES,
        env=cluster.environment,
        capture_output=True,
        timeout=90,
        check=True,
    )
