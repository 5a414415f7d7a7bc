"""Our server beside another one that speaks the OpenAI API, in alternation on the same prompts.

Start the other one yourself, on the same model and machine, with room for 64 sequences, and name it::

    python -m benchmarks.compare --url http://127.0.0.1:8080 --name llama-server

It must accept ``ignore_eos`` and ``stream_options`` (llama-server, vLLM and SGLang do). Both are running while either
is measured; one that takes processor time when idle would slow the other, so that share is reported, where its
process is named by ``--pid``.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field

from benchmarks import load, prompts
from benchmarks.report import finish, machine_line, percentile, spread, table
from benchmarks.server import Server, cpu_of
from causerie.config import Settings
from causerie.models.precision import PRECISIONS

TOKENS = 64


@dataclass(slots=True)
class Side:
    """One server's runs at one number of streams."""

    target: load.Target
    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def measure(self, turns: list[str]) -> None:
        run = load.run(self.target, turns, TOKENS)
        self.rates.append(run.rate)
        self.first.extend(run.first)

    def first_ms(self, share: float) -> float:
        return 1000 * percentile(self.first, share)


def alternate(ours: load.Target, other: load.Target, streams: int, rounds: int) -> tuple[Side, Side]:
    """``rounds`` runs of each in turn, on prompts that are new to both. The first round does not count."""
    sides = Side(ours), Side(other)
    for target in (ours, other):
        load.run(target, prompts.distinct(streams, 10_000 + streams), TOKENS)
    for turn in range(rounds):
        turns = prompts.distinct(streams, 100 * streams + turn)
        for side in sides if turn % 2 == 0 else reversed(sides):
            side.measure(turns)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the other server")
    parser.add_argument("--name", default="the other", help="what to call it in the table")
    parser.add_argument("--model", default="default", help="the model to ask it for")
    parser.add_argument("--pid", type=int, help="its process, to see what it takes when idle")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default=Settings().precision, choices=sorted(PRECISIONS))
    arguments = parser.parse_args()
    other = load.Target(arguments.url, arguments.model)
    idle: float | None = None
    results: list[tuple[int, Side, Side]] = []
    with Server.causerie("--precision", arguments.precision) as server:
        for streams in arguments.streams:
            results.append((streams, *alternate(server.target, other, streams, arguments.rounds)))
        if arguments.pid:
            before = cpu_of(arguments.pid)
            run = load.run(server.target, prompts.distinct(16, 99), TOKENS)
            idle = (cpu_of(arguments.pid) - before) / run.seconds
    rows: list[tuple[str | int | float, ...]] = []
    for streams, ours, theirs in results:
        ratios = [mine / yours for mine, yours in zip(ours.rates, theirs.rates, strict=True)]
        rows.append(
            (
                *(streams, ours.rate, theirs.rate, f"{ours.rate / theirs.rate:.2f}", spread(ratios)),
                *(side.first_ms(share) for share in (0.5, 0.99) for side in (ours, theirs)),
            )
        )
    name = arguments.name
    headers = (
        *("streams", "causerie tok/s", f"{name} tok/s", "ratio", "pairs: median (range)"),
        *("first p50, ms", f"{name} p50", "first p99, ms", f"{name} p99"),
    )
    print(machine_line() + f" ({name} is one of them.)\n")
    print(table(headers, rows))
    if idle is not None:
        print(f"\n{name} took {100 * idle:.1f} % of a core while causerie was measured.")
    finish("compare", {"name": name, "idle": idle, "rows": [dict(zip(headers, row, strict=True)) for row in rows]})


if __name__ == "__main__":
    main()
