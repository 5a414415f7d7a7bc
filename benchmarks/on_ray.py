"""The product on Ray Serve beside ``causerie serve``, how it grows with engines, and the tutorial's design.

- *product*: one engine replica behind Ray's Python proxy (as it is, and with ``RAY_SERVE_PROXY_USE_GRPC=1``), and
  behind its HAProxy front, each beside the embedded server in alternation; what the processor does per token in Ray's
  proxy, the ingress and the engine;
- *front*: what comes first of an application that does nothing but answer, behind the same fronts: what no
  application on Ray Serve can be faster than;
- *engines*: tokens/s with 1, 2 and 4 engine replicas, each a scripted engine of a fixed pace, so that the model is not
  what limits;
- *tutorial*: the tutorial's Textbot, and how long the client that is served last waits for its first text.

It starts a Ray of its own; let no other run on the machine. Three rounds take about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import load, prompts
from benchmarks.compare import Side, alternate
from benchmarks.report import finish, machine_line, percentile, spread, table
from benchmarks.server import Server, cpu_of

TOKENS = 64
ROLES = {
    "proxy": ("ray::ProxyActor", "ray::HAProxyManager", "haproxy"),
    "ingress": ("ray::ServeReplica:default:Ingress", "ray::ServeReplica:default:Bare"),
    "engine": ("ray::ServeReplica:default:Engine",),
}
FRONTS: dict[str, dict[str, str]] = {
    "Python proxy": {},
    "Python proxy, gRPC": {"RAY_SERVE_PROXY_USE_GRPC": "1"},
    "HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
}
_BARE = {"bare": True}


class Bare:
    """A deployment that answers every request with some text at once."""

    def __serve_build_asgi_app__(self) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                for phase in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{phase}.complete"})
                return
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Yes.", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        return app


def on_ray(arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Server:
    """``causerie.ray:build`` with these arguments."""
    command = [sys.executable, "-m", "benchmarks.on_ray", "--arguments", json.dumps(dict(arguments)), "--serve"]
    return Server(command, environment=environment)


def serve(port: int, arguments: Mapping[str, Any]) -> None:
    """The child process: a Ray, and the product on it, until SIGTERM."""
    import ray
    from ray import serve as ray_serve

    from causerie.ray import build

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        ray.init("local", num_cpus=8, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        bare = ray_serve.deployment(max_ongoing_requests=1000)(ray_serve.ingress(None)(Bare))
        ray_serve.run(bare.bind() if arguments == _BARE else build(arguments))
        signal.sigwait({signal.SIGTERM})
        ray_serve.shutdown()
        ray.shutdown()


def cpu_by_role() -> dict[str, float]:
    """Processor seconds so far of Ray's proxy, the ingress and the engine with its runtime."""
    seconds = dict.fromkeys(ROLES, 0.0)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        for role, names in ROLES.items():
            if title.startswith(names):
                seconds[role] += cpu_of(int(path.parent.name))
    return seconds


def product(rounds: int) -> tuple[str, dict[str, Any]]:
    rows: list[tuple[str | int | float, ...]] = []
    for front, environment in FRONTS.items():
        with on_ray({"engines": 1}, environment) as server, Server.causerie() as embedded:
            for streams in (1, 16):
                ours, ray = alternate(embedded.target, server.target, streams, rounds)
                before = cpu_by_role()
                runs = [
                    load.run(server.target, prompts.distinct(streams, 777 + turn), TOKENS) for turn in range(rounds)
                ]
                tokens = sum(run.tokens for run in runs)
                used = {role: 1e6 * (after - before[role]) / tokens for role, after in cpu_by_role().items()}
                rows.append(_product_row(front, streams, ours, ray, used))
    headers = (
        *("front", "streams", "embedded tok/s", "on Ray tok/s", "ratio", "pairs: median (range)"),
        *("first text later by, ms", "proxy CPU, µs per token", "ingress", "engine"),
    )
    return table(headers, rows), {"rows": [dict(zip(headers, row, strict=True)) for row in rows]}


def _product_row(
    front: str, streams: int, ours: Side, ray: Side, used: Mapping[str, float]
) -> tuple[str | int | float, ...]:
    pairs = [theirs / mine for mine, theirs in zip(ours.rates, ray.rates, strict=True)]
    return (
        *(front, streams, ours.rate, ray.rate, f"{ray.rate / ours.rate:.2f}", spread(pairs)),
        *(ray.first_ms(0.5) - ours.first_ms(0.5), *(round(used[role]) for role in ROLES)),
    )


def front(rounds: int) -> tuple[str, dict[str, Any]]:
    rows: list[tuple[str | int | float, ...]] = []
    for name, environment in FRONTS.items():
        with on_ray(_BARE, environment) as server:
            for streams in (1, 16):
                load.run_textbot(server.target, prompts.distinct(streams, 0), 1)
                before = cpu_by_role()
                runs = [load.run_textbot(server.target, prompts.distinct(streams, 1), 1) for _ in range(10 * rounds)]
                first = [1000 * seconds for run in runs for seconds in run.first]
                used = {role: 1000 * (after - before[role]) / len(first) for role, after in cpu_by_role().items()}
                rows.append(
                    (name, streams, statistics.median(first), percentile(first, 0.99), used["proxy"], used["ingress"])
                )
    headers = ("front", "streams", "first p50, ms", "p99", "proxy CPU, ms per request", "replica")
    return table(headers, rows), {"rows": [dict(zip(headers, row, strict=True)) for row in rows]}


def engines(rounds: int) -> tuple[str, dict[str, Any]]:
    """Four sequences fill an engine, and there are always more that wait."""
    rows: list[tuple[str | int | float, ...]] = []
    for count in (1, 2, 4):
        with on_ray({"engine": "scripted", "engines": count, "max_batch_size": 4}) as server:
            streams = 16 * count
            load.run(server.target, prompts.distinct(streams, 1), TOKENS)
            rates = []
            for turn in range(rounds):
                before = cpu_by_role()
                run = load.run(server.target, prompts.distinct(streams, 10 + turn), 4 * TOKENS)
                cores = sum(cpu_by_role().values()) - sum(before.values())
                rates.append((run.rate, cores / run.seconds))
            rate = statistics.median(rate for rate, _ in rates)
            first = rows[0][2] if rows else rate
            assert isinstance(first, float)
            rows.append(
                (count, streams, rate, f"{rate / first / count:.2f}", statistics.median(busy for _, busy in rates))
            )
    headers = ("engines", "streams", "tok/s", "of linear", "cores in use")
    return table(headers, rows), {"rows": [dict(zip(headers, row, strict=True)) for row in rows]}


def tutorial(rounds: int) -> tuple[str, dict[str, Any]]:
    """A third of the rounds: its last client waits for a minute in each."""
    rows: list[tuple[str | int | float, ...]] = []
    with Server([sys.executable, "-m", "benchmarks.tutorial", "--serve"]) as other, on_ray({"engines": 1}) as ours:
        for target in (other.target, ours.target):
            load.run_textbot(target, prompts.distinct(1, 0), 8)
        for streams in (8, 16):
            mine, theirs = [], []
            for turn in range(max(1, rounds // 3)):
                turns = prompts.distinct(streams, 1000 * streams + turn)
                mine.append(load.run_textbot(ours.target, turns, TOKENS))
                theirs.append(load.run_textbot(other.target, turns, TOKENS))
            rates = [statistics.median(run.rate for run in runs) for runs in (mine, theirs)]
            last = [percentile((first for run in runs for first in run.first), 1.0) for runs in (mine, theirs)]
            rows.append((streams, *rates, f"{rates[0] / rates[1]:.1f}", *last))
    headers = ("clients", "on Ray tok/s", "tutorial tok/s", "ratio", "last first text, s", "tutorial's, s")
    return table(headers, rows), {"rows": [dict(zip(headers, row, strict=True)) for row in rows]}


PARTS = {"product": product, "front": front, "engines": engines, "tutorial": tutorial}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", default="{}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, json.loads(arguments.arguments))
        return
    found = {part: PARTS[part](arguments.rounds) for part in arguments.parts}
    print(machine_line())
    for page, _ in found.values():
        print("\n" + page)
    finish("ray", {part: result for part, (_, result) in found.items()})


if __name__ == "__main__":
    main()
