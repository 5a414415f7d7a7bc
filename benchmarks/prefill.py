"""What others feel while a 4,000-token prompt is being read, for each size of the pieces it is read in.

Through the server, for each ``--prefill-piece``:

- *short prompt*: the time to the first text of 50-token prompts that come at random moments while the long one
  is read, over the time of one alone;
- *longest gap*: with four streams running, the longest time that one of them stood still during the reading;
- *long prompt*: its own time to the first text, alone, which small pieces make longer.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import uvloop

from benchmarks import prompts
from benchmarks.load import Exchange, Target, open_exchange
from benchmarks.report import finish, machine_line, table
from benchmarks.server import Server

PIECES = (64, 128, 256, 512)
LONG_WORDS = 3950
"""About 4,000 tokens with the template."""
RUNNING = 4


@dataclass(slots=True)
class Findings:
    """All times in seconds."""

    piece: int
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """The longest of the four streams, once per round."""
    undisturbed_gaps: list[float] = field(default_factory=list)
    """The same while nothing is read."""
    long: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(self.beside) / statistics.median(self.alone)

    def row(self) -> tuple[str | int | float, ...]:
        return (
            self.piece,
            1000 * statistics.median(self.alone),
            1000 * statistics.median(self.beside),
            1000 * max(self.beside),
            f"{self.ratio:.2f}",
            1000 * statistics.median(self.undisturbed_gaps),
            1000 * statistics.median(self.gaps),
            1000 * max(self.gaps),
            statistics.median(self.long),
        )


class Scene:
    """One server; every prompt of it is new."""

    def __init__(self, target: Target, piece: int) -> None:
        self._target = target
        self._seed = piece * 1000
        self._chance = random.Random(piece)
        self.findings = Findings(piece)

    async def play(self, rounds: int) -> Findings:
        await self._short()
        for _ in range(rounds):
            self.findings.alone.extend([await self._short() for _ in range(3)])
            await self._long_alone()
            await self._short_beside_long()
            await self._streams_beside_long()
        return self.findings

    def _turn(self) -> str:
        self._seed += 1
        (turn,) = prompts.distinct(1, self._seed)
        return turn

    def _long_turn(self) -> str:
        self._seed += 1
        return prompts.words(LONG_WORDS, self._seed)

    async def _begin(self, turn: str, tokens: int) -> Exchange:
        exchange = await open_exchange(self._target, self._target.chat(turn, tokens), tokens)
        exchange.begin()
        return exchange

    async def _first(self, exchange: Exchange) -> float:
        await exchange.done
        exchange.leave()
        assert exchange.first is not None
        return exchange.first - exchange.begun

    async def _short(self) -> float:
        return await self._first(await self._begin(self._turn(), 1))

    async def _long_alone(self) -> None:
        self.findings.long.append(await self._first(await self._begin(self._long_turn(), 1)))

    async def _short_beside_long(self) -> None:
        """Short prompts at random moments while the long one is read; one that outlasts it does not count."""
        long = await self._begin(self._long_turn(), 1)
        while not long.done.done():
            await asyncio.sleep(self._chance.uniform(0.0, 0.3))
            seconds = await self._short()
            if not long.done.done():
                self.findings.beside.append(seconds)
        await self._first(long)

    async def _streams_beside_long(self) -> None:
        running = [await self._begin(self._turn(), 1000) for _ in range(RUNNING)]
        await asyncio.sleep(2.0)
        begin = running[0].arrivals[-1]
        long = await self._begin(self._long_turn(), 1)
        await self._first(long)
        assert long.first is not None
        for stream in running:
            stream.leave()
        self.findings.gaps.append(max(_longest_gap(stream.arrivals, begin, long.first) for stream in running))
        self.findings.undisturbed_gaps.append(max(_longest_gap(stream.arrivals, 0.0, begin) for stream in running))


def _longest_gap(arrivals: Sequence[float], begin: float, end: float) -> float:
    times = [time for time in arrivals if begin <= time < end]
    return max((after - before for before, after in pairwise([*times, end] if begin else times)), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, nargs="+", default=PIECES)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = []
    for piece in arguments.pieces:
        with Server.causerie("--prefill-piece", str(piece)) as server:
            results.append(uvloop.run(Scene(server.target, piece).play(arguments.rounds)))
    headers = (
        *("piece", "short alone, ms", "beside, ms", "worst, ms", "ratio"),
        *("gap undisturbed, ms", "longest gap, ms", "worst, ms", "long alone, s"),
    )
    print(machine_line() + "\n")
    print(table(headers, (findings.row() for findings in results)))
    finish("prefill", {"rows": [dict(zip(headers, findings.row(), strict=True)) for findings in results]})


if __name__ == "__main__":
    main()
