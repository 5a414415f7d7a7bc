"""What the server costs: served tokens/s over the raw engine's own loop, on the same prompts, in alternation.

The raw loop (``benchmarks.raw``) has the server's own folder, properties, scheduler and request settings, gets
the same ids in the same order, and idles while the server is measured. The load generator runs on the same cores.
Both systems see a pair's prompts for the first time; which goes first alternates.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks import load, prompts
from benchmarks.raw import RawProcess
from benchmarks.report import finish, machine_line, spread, table
from benchmarks.server import Server, cpu_of, main_thread_cpu_of
from causerie.config import Settings
from causerie.models.precision import PRECISIONS
from causerie.models.progress import StderrProgress
from causerie.models.resolve import resolve
from causerie.text.model import TextModel
from causerie.types import ChatPrompt, Message

STREAMS = (1, 16, 64)
TOKENS = 64


@dataclass(slots=True)
class Pairs:
    """Both systems' runs at one number of streams; processor seconds are per delivered token."""

    streams: int
    served: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    loop_cpu: list[float] = field(default_factory=list)
    """Of the server's event loop alone: all of its work but the engine's thread."""
    raw_cpu: list[float] = field(default_factory=list)
    generator_cpu: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [served / raw for served, raw in zip(self.served, self.raw, strict=True)]

    @property
    def ratio_of_medians(self) -> float:
        return statistics.median(self.served) / statistics.median(self.raw)

    def row(self) -> tuple[str | int | float, ...]:
        costs = (self.server_cpu, self.raw_cpu, self.loop_cpu, self.generator_cpu)
        return (
            self.streams,
            statistics.median(self.served),
            statistics.median(self.raw),
            f"{self.ratio_of_medians:.3f}",
            spread(self.ratios),
            *(f"{1e6 * statistics.median(cost):.0f}" for cost in costs),
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds of a server's whole process and of its event loop."""

    process: float
    loop: float

    @classmethod
    def of(cls, server: Server) -> Cost:
        return cls(cpu_of(server.pid), main_thread_cpu_of(server.pid))


class Bench:
    """A server and a raw engine, side by side, one working at a time."""

    def __init__(self, server: Server, raw: RawProcess, text: TextModel) -> None:
        self._server = server
        self._raw = raw
        self._text = text
        self._seed = 0
        self.idle_shares: list[float] = []
        """Of one core: what the idle raw process took while the server was measured."""

    def pair(self, streams: int, tokens: int, *, served_first: bool) -> tuple[load.Load, Cost, dict[str, Any]]:
        """The server's run with what it took of the processor, and the raw loop's, on new prompts."""
        self._seed += 1
        turns = prompts.distinct(streams, self._seed)
        ids = [self._text.encode(ChatPrompt((Message("user", turn),))) for turn in turns]
        if not served_first:
            bare = self._raw.call("generate", prompts=ids, tokens=tokens)
        before, idle = Cost.of(self._server), cpu_of(self._raw.pid)
        served = load.run(self._server.target, turns, tokens)
        after = Cost.of(self._server)
        cost = Cost(after.process - before.process, after.loop - before.loop)
        self.idle_shares.append((cpu_of(self._raw.pid) - idle) / served.seconds)
        if served_first:
            bare = self._raw.call("generate", prompts=ids, tokens=tokens)
        return served, cost, bare

    def throughput(self, streams: int, count: int) -> Pairs:
        self.pair(streams, TOKENS, served_first=True)
        pairs = Pairs(streams)
        for turn in range(count):
            served, cost, bare = self.pair(streams, TOKENS, served_first=turn % 2 == 0)
            pairs.served.append(served.rate)
            pairs.raw.append(bare["tokens"] / bare["seconds"])
            pairs.server_cpu.append(cost.process / served.tokens)
            pairs.loop_cpu.append(cost.loop / served.tokens)
            pairs.raw_cpu.append(bare["cpu"] / bare["tokens"])
            pairs.generator_cpu.append(served.cpu / served.tokens)
        return pairs

    def first_token(self, count: int) -> tuple[list[float], list[float]]:
        """Seconds to the first token at one stream: the server's and the raw engine's."""
        served, raw = [], []
        for turn in range(count):
            run, _, bare = self.pair(1, 4, served_first=turn % 2 == 0)
            served.append(run.first[0])
            raw.append(bare["first"][0])
        return served, raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="alternating pairs at each number of streams")
    parser.add_argument("--first", type=int, default=30, help="pairs for the first token at one stream")
    parser.add_argument("--precision", default=Settings().precision, choices=sorted(PRECISIONS))
    arguments = parser.parse_args()
    settings = Settings(precision=arguments.precision)
    form = PRECISIONS[settings.precision].form
    folder = resolve(settings.model, form=form, engine="openvino", progress=StderrProgress())
    text = TextModel.load(folder.path, eos_token_ids=folder.eos_token_ids, bos_token_id=folder.bos_token_id)
    with RawProcess(settings) as raw, Server.causerie("--precision", settings.precision) as server:
        bench = Bench(server, raw, text)
        results = [bench.throughput(streams, arguments.pairs) for streams in STREAMS]
        served, bare = bench.first_token(arguments.first)
    print(machine_line() + "\n")
    headers = (
        *("streams", "served tok/s", "raw tok/s", "ratio", "pairs: median (range)"),
        *("server CPU, µs per token", "raw engine's", "event loop's", "generator's"),
    )
    print(table(headers, (pairs.row() for pairs in results)))
    overhead = 1000 * (statistics.median(served) - statistics.median(bare))
    print(
        f"\nFirst token at one stream, median of {len(served)}: served {1000 * statistics.median(served):.1f} ms, "
        f"raw {1000 * statistics.median(bare):.1f} ms, difference {overhead:.1f} ms. The raw process took "
        f"{100 * max(bench.idle_shares):.1f} % of a core at most while the server was measured."
    )
    finish(
        "serve",
        {
            "precision": settings.precision,
            "rows": [
                {
                    "streams": pairs.streams,
                    "served": pairs.served,
                    "raw": pairs.raw,
                    "ratio_of_medians": pairs.ratio_of_medians,
                    "median_ratio": statistics.median(pairs.ratios),
                    "server_cpu_per_token": statistics.median(pairs.server_cpu),
                    "loop_cpu_per_token": statistics.median(pairs.loop_cpu),
                    "raw_cpu_per_token": statistics.median(pairs.raw_cpu),
                    "generator_cpu_per_token": statistics.median(pairs.generator_cpu),
                }
                for pairs in results
            ],
            "first_token_ms": {
                "served": 1000 * statistics.median(served),
                "raw": 1000 * statistics.median(bare),
                "difference": overhead,
            },
        },
    )


if __name__ == "__main__":
    main()
