"""The files in deploy/, as far as they can be read without a container or a Kubernetes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click import ClickException
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from causerie.chat.stores import make_store
from causerie.keys import hash_of, new_key
from causerie.ray import build
from tests.support.ray_cluster import SERVE as SERVE_COMMAND
from tests.support.redis_server import redis_server

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVE = "serve.yaml"
SERVICE = "rayservice.yaml"
KEYS = "/etc/causerie/keys/api-keys"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def service() -> dict[str, Any]:
    (spec,) = [document["spec"] for document in documents(SERVICE) if document["kind"] == "RayService"]
    assert isinstance(spec, dict)
    return spec


def groups() -> list[dict[str, Any]]:
    """The head's and the workers' groups of pods."""
    config = service()["rayClusterConfig"]
    return [config["headGroupSpec"], *config["workerGroupSpecs"]]


def serve_config(name: str) -> dict[str, Any]:
    if name == SERVICE:
        config = yaml.safe_load(service()["serveConfigV2"])
    else:
        (config,) = documents(name)
    assert isinstance(config, dict)
    return config


both = pytest.mark.parametrize("name", [SERVE, SERVICE])


@both
def test_ray_takes_the_serve_config_and_knows_every_key_of_it(name: str) -> None:
    config = serve_config(name)
    # Ray ignores keys that it does not know, so that a slip of the pen would not be seen.
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    for app in config["applications"]:
        assert set(app) <= set(ServeApplicationSchema.model_fields)
    ServeDeploySchema.model_validate(config)


@both
def test_the_application_takes_its_arguments_and_has_the_deployments_that_are_named(name: str, tmp_path: Path) -> None:
    keys = tmp_path / "api-keys"
    keys.write_text(f"alice: {hash_of(new_key().encode())}\n")
    for app in serve_config(name)["applications"]:
        assert app["import_path"] == f"{build.__module__.rpartition('.')[0]}:{build.__name__}"
        build({**app["args"], "api_keys_file": str(keys)})
        assert {deployment["name"] for deployment in app.get("deployments", ())} <= {"Ingress", "Engine"}


def test_serve_build_writes_a_config_that_serve_deploy_takes(tmp_path: Path) -> None:
    file = tmp_path / "built.yaml"
    command = [str(SERVE_COMMAND), "build", "causerie.ray:app", "-o", str(file)]
    environment = {**os.environ, "CAUSERIE_MAX_BATCH_SIZE": "8"}
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    config = yaml.safe_load(file.read_text())
    ServeDeploySchema.model_validate(config)
    (app,) = config["applications"]
    assert app["import_path"] == "causerie.ray:app"
    assert {one["name"]: one["max_ongoing_requests"] > 8 for one in app["deployments"]} == {
        "Engine": True,
        "Ingress": True,
    }


@both
def test_whoever_listens_to_everybody_asks_for_keys(name: str) -> None:
    config = serve_config(name)
    assert config["http_options"]["host"] == "0.0.0.0"
    for app in config["applications"]:
        with pytest.raises(ClickException, match=f"Cannot read the API keys file '{KEYS}'"):
            build(app["args"])


def test_the_key_file_is_where_it_is_looked_for() -> None:
    (compose,) = documents("compose.yaml")
    (secret,) = compose["services"]["causerie"]["secrets"]
    assert secret["target"] == KEYS
    assert set(compose["secrets"]) == {secret["source"]}
    folder, _, key = KEYS.rpartition("/")
    for group in groups():
        pod = group["template"]["spec"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert (mount["mountPath"], mount["name"]) == (folder, pod["volumes"][0]["name"])
        assert (
            f"kubectl create secret generic {pod['volumes'][0]['secret']['secretName']} --from-file={key}\n"
            in (DEPLOY / SERVICE).read_text()
        )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"api_keys": "alice=0123456789abcdef"}, "only the variable CAUSERIE_API_KEYS"),
        ({"api_keys_file": "/no/such/file"}, "Cannot read the API keys file"),
        ({"allow_anonymous": "perhaps"}, "--allow-anonymous"),
    ],
)
def test_keys_that_are_wrong_are_one_line(args: dict[str, str], said: str) -> None:
    with pytest.raises(ClickException, match=said):
        build(args)


def test_an_argument_that_is_wrong_would_be_seen() -> None:
    with pytest.raises(ClickException, match="Did you mean model"):
        build({"modle": "default"})


def test_every_engine_finds_a_place() -> None:
    (app,) = serve_config(SERVICE)["applications"]
    (engine,) = [one for one in app["deployments"] if one["name"] == "Engine"]
    _, (workers,) = groups()[0], groups()[1:]
    cpus = int(workers["rayStartParams"]["num-cpus"])
    assert str(cpus) == workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    fewest, most = map(int, app["args"]["engines"].split("-"))
    wanted = engine["ray_actor_options"]["num_cpus"]
    assert cpus >= wanted + 1
    assert cpus // wanted * workers["minReplicas"] >= fewest
    assert cpus // wanted * workers["maxReplicas"] >= most


def test_the_operator_finds_the_ports_by_their_names() -> None:
    port = serve_config(SERVICE)["http_options"]["port"]
    named = [
        {port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
        for group in groups()
    ]
    assert named[0] == {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": port}
    assert all(ports["serve"] == port for ports in named)


def test_only_the_servers_port_is_open_to_everybody() -> None:
    (policy,) = [document["spec"] for document in documents(SERVICE) if document["kind"] == "NetworkPolicy"]
    for_everybody = [rule["ports"] for rule in policy["ingress"] if "from" not in rule]
    assert for_everybody == [[{"port": serve_config(SERVICE)["http_options"]["port"], "protocol": "TCP"}]]
    for group in groups():
        assert policy["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    assert service()["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_the_cluster_asks_for_the_ray_that_was_tested() -> None:
    (tested,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert service()["rayClusterConfig"]["rayVersion"] == tested


def test_the_image_copies_files_that_are_there_and_what_compose_mounts_is_what_it_runs() -> None:
    lines = [line.split(maxsplit=1) for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line]
    copied = {path for word, rest in lines if word == "COPY" for path in shlex.split(rest)[:-1]}
    assert {"pyproject.toml", "src"} <= copied
    assert all((ROOT / path).exists() for path in copied)
    (command,) = [yaml.safe_load(rest) for word, rest in lines if word == "CMD"]
    (compose,) = documents("compose.yaml")
    container = compose["services"]["causerie"]
    mounts = dict(mount.split(":")[:2] for mount in container["volumes"])
    assert mounts[f"./{SERVE}"] == command[-1]
    assert (DEPLOY / container["build"]["context"] / container["build"]["dockerfile"]).is_file()
    assert container["ports"] == [f"127.0.0.1:8000:{serve_config(SERVE)['http_options']['port']}"]


async def test_composes_redis_is_one_that_the_store_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    (compose,) = documents("compose.yaml")
    reference = compose["services"]["causerie"]["environment"]["CAUSERIE_STORE"]
    assert (urlsplit(reference).scheme, urlsplit(reference).hostname) == ("redis", "redis")
    monkeypatch.setenv("CAUSERIE_STORE", reference)
    front: Any = build({"engine": "scripted", "ingresses": 2})._bound_deployment
    assert front.init_args[1]["store"] == reference
    redis = compose["services"]["redis"]
    shared = [service["networks"] for service in (redis, compose["services"]["causerie"])]
    assert shared[0] == ["store"] and "store" in shared[1] and compose["networks"]["store"] == {"internal": True}
    with redis_server(*redis["command"][1:]) as url:
        store = make_store(url, 10**6)
        await store.open("one", lambda _: None)
        await store.close()
