"""A thousand cuts: every stream is cut again and again, and picked up again, until its client has all of it.

A proxy before a real ``causerie serve`` resets, stalls or half-closes connections at random bytes of requests and
answers, and sends a part of them byte by byte. What each client put together is compared with the answer that the
server has: on the scripted engine with the known one too.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fault_proxy import FaultProxy, Way, faults
from tests.support.resuming import CLIENTS, Client, whole_text

from benchmarks import prompts
from benchmarks.report import finish, machine_line, table
from benchmarks.server import Server

AT_ONCE = 16
PER_STREAM = 12
"""Cuts at most."""
TOKENS = 96
"""Of an answer of the model's."""
MEAN = 250.0
"""Bytes of a bare answer between two cuts; where there is more around the text, so many times more."""
PATIENCE = 2.0
"""Seconds of silence after which a client gives up."""
WISHES = ("continue", "grace(60)")


@dataclass(slots=True)
class Tally:
    """What happened to the streams of one protocol."""

    streams: int = 0
    cuts: Counter[Way] = field(default_factory=Counter)
    split: int = 0
    wrong: list[str] = field(default_factory=list)
    """What was lost, doubled or out of order."""


class Cutter:
    """Keeps ``AT_ONCE`` streams going until there were enough cuts."""

    def __init__(self, server: Server, engine: str, seed: int) -> None:
        self.tallies = {name: Tally() for name in CLIENTS}
        self._address = server.target.address
        self._scripted = engine == "scripted"
        self._seed = seed
        self._numbers = itertools.count()

    @property
    def cuts(self) -> int:
        return sum(tally.cuts.total() for tally in self.tallies.values())

    async def run(self, cuts: int) -> None:
        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_ONCE):
                workers.create_task(self._work(cuts))

    async def _work(self, cuts: int) -> None:
        while self.cuts < cuts:
            number = next(self._numbers)
            name = list(CLIENTS)[number % len(CLIENTS)]
            client, expected = self._client(name, number)
            tally = self.tallies[name]
            tally.streams += 1
            plan = faults(f"{self._seed} {number}", PER_STREAM, mean=MEAN * client.framing)
            async with FaultProxy(self._address, plan) as proxy:
                try:
                    async with asyncio.timeout(120):
                        await client.run(proxy.address, PATIENCE)
                    await asyncio.to_thread(self._compare, client, expected)
                except (AssertionError, TimeoutError) as error:
                    tally.wrong.append(f"{name}, stream {number}: {str(error)[:300] or type(error).__name__}")
                tally.cuts += proxy.cuts
                tally.split += proxy.split

    def _client(self, name: str, number: int) -> tuple[Client, str | None]:
        wish, id_ = WISHES[number % 2], f"cut-{self._seed}-{number}"
        if self._scripted:
            text = f"{number}: " + "".join(random.Random(number).choices("aäß 🦁z—\n", k=150)) + "."
            said = f"You said: {text}. This is the scripted engine; it answers every turn this way."
            return CLIENTS[name](id_, text, wish), said
        (turn,) = prompts.distinct(1, number)
        return CLIENTS[name](id_, turn, wish, max_tokens=TOKENS), None

    def _compare(self, client: Client, expected: str | None) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        connection.request("GET", client.where())
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        stored = whole_text(client.where(), body)
        assert client.text == stored, (client.text, stored)
        assert expected is None or stored == expected, (stored, expected)
        connection.close()


def measure(engine: str, cuts: int, seed: int) -> tuple[Cutter, float]:
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "responses.sqlite3")
        with Server.causerie("--engine", engine, "--store", store) as server:
            cutter = Cutter(server, engine, seed)
            begin = time.perf_counter()
            asyncio.run(cutter.run(cuts))
            return cutter, time.perf_counter() - begin


def report(engine: str, cutter: Cutter, seconds: float) -> str:
    rows: list[Sequence[str | int | float]] = []
    for name, tally in cutter.tallies.items():
        ways = [tally.cuts[way] for way in Way]
        rows.append((name, tally.streams, tally.cuts.total(), *ways, tally.split, len(tally.wrong)))
    sums = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    headers = ("protocol", "streams", "cuts", *Way, "connections byte by byte", "not exactly right")
    what = "scripted engine" if engine == "scripted" else "default model"
    return f"{what}, {seconds:.0f} s:\n\n" + table(headers, [*rows, ("all", *sums)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=1000, help="on each engine")
    parser.add_argument(
        "--seed", type=int, default=None, help="repeat the cuts of an earlier run, as far as timing does"
    )
    parser.add_argument("--engines", nargs="+", default=["scripted", "openvino"])
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    measured = {engine: measure(engine, arguments.cuts, seed) for engine in arguments.engines}
    print(machine_line() + f" Seed {seed}.\n")
    for engine, (cutter, seconds) in measured.items():
        print(report(engine, cutter, seconds))
    wrong = [text for cutter, _ in measured.values() for tally in cutter.tallies.values() for text in tally.wrong]
    for text in wrong[:20]:
        print("WRONG:", text)
    result = {engine: {"cuts": cutter.cuts, "seconds": seconds} for engine, (cutter, seconds) in measured.items()}
    finish("cuts", {"seed": seed, "engines": result, "wrong": len(wrong)})
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
