"""The product on a real Ray Serve, on the default model: started as its users start it, and then hurt."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from causerie.keys import hash_of, new_key
from tests.on_ray.product import deploy, kill, pids, replicas, socket_url, story
from tests.support.ray_cluster import EXAMPLES, SERVE, Bot, RayCluster, serve_run, until
from tests.support.scenarios import FINISHED, SCENARIOS, Scenario, converse, until_nothing_runs

pytestmark = [pytest.mark.model, pytest.mark.slow]


ARGUMENTS = ("engines=2", "max_batch_size=16", "max_waiting=4", "shutdown_deadline=120")


@pytest.fixture(scope="module")
def product(cluster: RayCluster, default_folder: object) -> Iterator[Bot]:
    with serve_run(cluster, "causerie.ray:build", *ARGUMENTS) as product:
        product.ready()
        yield product


@pytest.fixture
def url(product: Bot) -> Iterator[str]:
    """The server, whole and idle before and after."""
    until(lambda: len(replicas(product.url, "engine_steps")) == 2, 60)
    until_nothing_runs(product.url, 10)
    yield product.url


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_scenario(url: str, scenario: Scenario) -> None:
    scenario(url)


def test_metrics_of_all_replicas_are_on_one_page(url: str, cluster: RayCluster) -> None:
    assert len(replicas(url, "engine_steps")) == len(pids(cluster, "Engine")) == 2
    assert len(replicas(url, "num_requests_running")) == len(pids(cluster, "Ingress")) == 1


def test_too_many_are_refused_as_in_one_process(url: str) -> None:
    """Case 9."""
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


def test_a_conversation_goes_on_where_its_prefix_is(url: str) -> None:
    known, given = replicas(url, "engine_prompt_tokens_known"), replicas(url, "engine_prompt_tokens")
    converse(url, *(f"Tell me more about the number {number}. " * 25 for number in range(6)))
    grown = {replica: value - given[replica] for replica, value in replicas(url, "engine_prompt_tokens").items()}
    reused = {replica: value - known[replica] for replica, value in replicas(url, "engine_prompt_tokens_known").items()}
    assert sum(reused.values()) > 0.6 * sum(grown.values())


def first_text_after(url: str, prompt: str) -> float:
    """Seconds to the first text of a completion, all of which is read."""
    body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True, "stream": True}
    begin = time.monotonic()
    with requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=60) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith(b"data:"))  # Before it, perhaps, a sign of life.
        seconds = time.monotonic() - begin
        assert [line for line in lines if line][-1] == b"data: [DONE]"
    return seconds


def test_what_was_read_is_found_again_by_the_time_of_the_first_token_and_its_engine_can_be_spared(
    url: str, cluster: RayCluster
) -> None:
    prompt = "".join(f"Line {number} of a long story. " for number in range(220))
    before = replicas(url, "engine_prompt_tokens")
    cold = first_text_after(url, prompt)
    given = {replica: value - before[replica] for replica, value in replicas(url, "engine_prompt_tokens").items()}
    assert max(given.values()) >= 1500
    warm = [first_text_after(url, prompt + f"And {end}.") for end in ("so on", "on it goes", "that is that")]
    assert max(warm) < cold / 2, (cold, warm)
    kill(cluster, "Engine", max(given, key=lambda replica: given[replica]))
    colder = first_text_after(url, prompt + "And what now?")
    assert colder > max(warm), (colder, warm)


def test_a_killed_engine_ends_its_streams_with_one_error_and_the_pool_recovers(url: str, cluster: RayCluster) -> None:
    """Case 39."""
    body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    streams = [requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=60) for _ in range(4)]
    lines = [stream.iter_lines() for stream in streams]
    for each in lines:
        next(line for line in each if line.startswith(b"data:"))
    kill(cluster, "Engine")
    begin = time.monotonic()
    for each in lines:
        rest = [line for line in each if line]
        assert rest[-1].startswith(b'data: {"error"'), rest[-3:]
        assert sum(b'"error"' in line for line in rest) == 1
        assert b"data: [DONE]" not in rest
    assert time.monotonic() - begin < 5
    assert story(url, 5).text


def test_a_killed_ingress_is_a_cut_that_nobody_takes_for_an_end(url: str, cluster: RayCluster) -> None:
    """Case 39, of the process that holds the sockets."""
    stream = story(url)
    pieces = stream.iter_content(None)
    next(pieces)
    with connect(socket_url(url, "?ignore_eos=true&max_tokens=4000")) as chat:
        chat.send("Hi")
        chat.recv(60)
        kill(cluster, "Ingress")
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
    """Case 40: a rolling update is what SIGTERM is to one process."""
    body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    before = set(pids(cluster, "Engine") + pids(cluster, "Ingress"))
    with ThreadPoolExecutor(1) as pool, connect(socket_url(url)) as idle, connect(socket_url(url)) as busy:
        streams = [requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=60) for _ in range(4)]
        busy.send("Hi")
        busy.recv(60)
        updated = pool.submit(deploy, cluster, "causerie.ray:build", *ARGUMENTS, "max_tokens=512")
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


def test_keys_are_asked_for_and_any_name_will_do(url: str, cluster: RayCluster, tmp_path: Path) -> None:
    """The last test here: it leaves a server without a model."""
    file, key = tmp_path / "keys", new_key()
    file.write_text(f"alice: {hash_of(key.encode())}\n")
    file.chmod(0o600)
    deploy(cluster, "causerie.ray:build", "engine=scripted", f"api_keys_file={file}")
    file.unlink()
    until(lambda: requests.get(f"{url}/v1/models", timeout=20).status_code == 401, 60)
    headers = {"Authorization": f"Bearer {key}"}
    refused = requests.post(f"{url}/v1/completions", json={"prompt": "Hi"}, timeout=20)
    assert (refused.headers["www-authenticate"], refused.json()["error"]["code"]) == ("Bearer", "invalid_api_key")
    assert requests.get(f"{url}/ready", timeout=20).status_code == 200
    with pytest.raises(InvalidStatus) as caught:
        connect(socket_url(url)).close()
    assert caught.value.response.status_code == 401
    offered = [Subprotocol("causerie.chat"), Subprotocol(f"openai-insecure-api-key.{key}")]
    with connect(socket_url(url), subprotocols=offered) as chat:
        assert chat.subprotocol == "causerie.chat"
        chat.send("Hi")
        assert chat.recv(20)
    assert requests.get(f"{url}/v1/models", headers=headers | {"Host": "chat.example.org"}, timeout=20).ok
    assert replicas(url, "engine_steps", headers)
