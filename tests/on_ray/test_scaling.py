"""Fewer engines than before, and servers that have their engine inside; on scripted engines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from click import ClickException

from causerie.ray import build
from tests.on_ray.product import deploy, pids, replicas
from tests.support.ray_cluster import RayCluster, serve_run, until
from tests.support.redis_server import redis_server
from tests.support.scenarios import until_nothing_runs

TURN = "la " * 500


def says(turn: str) -> str:
    return f"You said: {turn.strip()}. This is the scripted engine; it answers every turn this way."


def ask(url: str) -> requests.Response:
    return requests.post(f"{url}/?max_tokens=2000", data=TURN, stream=True, timeout=60)


@pytest.mark.slow
def test_an_engine_that_is_scaled_away_finishes_its_answers_and_admission_follows(
    cluster: RayCluster, tmp_path: Path
) -> None:
    def config(engines: int) -> str:
        file = tmp_path / f"{engines}.yaml"
        args = {"engine": "scripted", "engines": 2, "max_batch_size": 4, "max_waiting": 0}
        app: dict[str, Any] = {
            "name": "default",
            "route_prefix": "/",
            "import_path": "causerie.ray:build",
            "args": args,
        }
        app["deployments"] = [{"name": "Engine", "num_replicas": engines}]
        file.write_text(yaml.safe_dump({"applications": [app]}))
        return str(file)

    with serve_run(cluster, config(2)) as product:
        until(lambda: len(replicas(product.url, "engine_steps")) == 2, 60)
        before = pids(cluster, "Ingress")
        streams = [ask(product.url) for _ in range(8)]
        assert ask(product.url).status_code == 429
        deploy(cluster, config(1))
        until(lambda: len(replicas(product.url, "engine_steps")) == 1, 30)
        assert [stream.text for stream in streams] == [says(TURN)] * 8
        until(lambda: len(pids(cluster, "Engine")) == 1, 30)
        assert pids(cluster, "Ingress") == before
        until_nothing_runs(product.url, 5)
        streams = [ask(product.url) for _ in range(6)]
        assert sorted(stream.status_code for stream in streams) == [200] * 4 + [429] * 2
        for stream in streams:
            stream.close()


@pytest.mark.slow
def test_a_replica_can_be_a_whole_server(cluster: RayCluster) -> None:
    arguments = ("embedded=true", "engines=2", "engine=scripted")
    with redis_server() as store, serve_run(cluster, "causerie.ray:build", *arguments, f"store={store}") as product:
        product.ready()
        assert len(pids(cluster, "Server")) == 2
        assert {requests.post(product.url, data="Hi", timeout=20).text for _ in range(4)} == {says("Hi")}
        until(lambda: len(replicas(product.url, "num_requests_running")) == 2, 20)
        assert sum(replicas(product.url, "generation_tokens_total").values()) >= 4 * len(says("Hi"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"embedded": "yes"}, "'embedded' must be true or false, not 'yes'."),
        ({"embedded": True, "engines": "1-4"}, "'engines' must be one number"),
        ({"engines": "4-1"}, "'engines' must be a number from 1, or two"),
        ({"ingresses": "0"}, "'ingresses' must be a number from 1, not '0'."),
        ({"embedded": True, "ingresses": 2}, "With embedded=true there are no 'ingresses'"),
        ({"ingresses": 2}, "2 servers need a store that they share"),
        ({"ingresses": 2, "store": ":memory:"}, "give store=redis://host:6379/0."),
        ({"embedded": True, "engines": 2}, "2 servers need a store that they share"),
        ({"store": "responses.sqlite3"}, "'store' cannot be the file 'responses.sqlite3'"),
        ({"store": "redis//host"}, "'store' cannot be the file"),
        ({"store": "http://host"}, "'http://host' is no store."),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ClickException, match=re.escape(said)) as refused:
        build(given)
    assert "\n" not in refused.value.message


def test_responses_are_kept_in_memory_or_in_redis() -> None:
    shared = {"ingresses": "2", "store": "redis://host"}
    cases: list[tuple[dict[str, str], str]] = [({}, ":memory:"), (shared, "redis://host")]
    for given, store in cases:
        front = build({"engine": "scripted"} | given)._bound_deployment
        arguments: tuple[Any, ...] = front.init_args
        assert arguments[1]["store"] == store
