"""What keeping responses costs: tokens/s with ``store`` against without, and the first token of a long conversation.

Both kinds of response come from one server, whose store is a file on this disk, in pairs whose order alternates. A
turn of a conversation asks a short new question; its first token is measured at one stream, with nothing else running,
through ``previous_response_id`` and through a conversation in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import load, prompts
from benchmarks.report import finish, machine_line, percentile, spread, table
from benchmarks.server import Server, cpu_of, main_thread_cpu_of

STREAMS = 16
TOKENS = 64
TURNS = 10
ANSWER = 60
"""Tokens of a conversation's answer."""
WAYS = ("previous_response_id", "conversation")
_ID = re.compile(rb'"id":"(resp_[0-9a-f]+)"')
_PROMPT = re.compile(rb'"input_tokens":(\d+),"input_tokens_details":\{"cached_tokens":(\d+)')


class Turn(NamedTuple):
    first: float
    """Seconds to the first text."""
    prompt: int
    """Tokens."""
    cached: int
    """Of the prompt's tokens: those that the engine had from before."""


@dataclass(slots=True)
class Side:
    """The runs with ``store``, or those without."""

    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Processor seconds per token, of the whole server."""
    loop_cpu: list[float] = field(default_factory=list)

    def add(self, run: load.Load, cpu: float, loop: float) -> None:
        self.rates.append(run.rate)
        self.first += run.first
        self.gaps += run.gaps
        self.cpu.append(cpu / run.tokens)
        self.loop_cpu.append(loop / run.tokens)

    def row(self, name: str) -> tuple[str | float, ...]:
        times = [1000 * percentile(values, share) for values in (self.first, self.gaps) for share in (0.5, 0.99)]
        costs = [f"{1e6 * statistics.median(cost):.0f}" for cost in (self.cpu, self.loop_cpu)]
        return (name, statistics.median(self.rates), *times, *costs)


def throughput(server: Server, count: int) -> dict[bool, Side]:
    """``count`` pairs of runs, on prompts that are new to the server."""
    sides = {True: Side(), False: Side()}
    for turn in range(-1, count):
        for store in (True, False) if turn % 2 else (False, True):
            turns = prompts.distinct(STREAMS, 2 * turn + store)
            requests = [server.target.response(text, TOKENS, store=store) for text in turns]
            cpu, loop = cpu_of(server.pid), main_thread_cpu_of(server.pid)
            run = load.run_requests(server.target, requests, TOKENS)
            if turn >= 0:  # The first pair warms up.
                sides[store].add(run, cpu_of(server.pid) - cpu, main_thread_cpu_of(server.pid) - loop)
    return sides


def ask(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(*server.target.address, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


async def _turn(server: Server, request: load.Request) -> tuple[Turn, str]:
    """What the turn took, and the response's id."""
    exchange = await load.open_exchange(server.target, request, ANSWER)
    try:
        exchange.begin()
        await exchange.done
    finally:
        exchange.leave()
    id_, tokens = _ID.search(exchange.tail), _PROMPT.search(exchange.tail)
    assert exchange.first is not None and id_ is not None and tokens is not None
    return Turn(exchange.first - exchange.begun, int(tokens[1]), int(tokens[2])), id_[1].decode()


def conversation(server: Server, way: str, seed: int, length: int = TURNS) -> list[Turn]:
    """Every one of its turns."""
    context = {"conversation": ask(server, "/v1/conversations", {})["id"]} if way == "conversation" else {}
    turns = []
    for turn in range(length):
        question = prompts.words(8, 1000 * seed + turn).capitalize() + ": what comes to your mind?"
        request = server.target.response(question, ANSWER, store=True, **context)
        taken, id_ = asyncio.run(_turn(server, request))
        turns.append(taken)
        if way == "previous_response_id":
            context = {way: id_}
    return turns


_COUNTS: tuple[Callable[[Turn], int], ...] = (lambda turn: turn.prompt, lambda turn: turn.prompt - turn.cached)


def turn_rows(turns: dict[str, list[list[Turn]]]) -> list[Sequence[str | float]]:
    rows: list[Sequence[str | float]] = []
    for way, talks in turns.items():
        by_turn = [[1000 * turn.first for turn in column] for column in zip(*talks, strict=True)]
        first, last = by_turn[0], by_turn[-1]
        ratios = [b / a for a, b in zip(first, last, strict=True)]
        middle = statistics.median(by_turn[TURNS // 2])
        medians = (statistics.median(first), middle, statistics.median(last))
        prompt, new = ([statistics.median(count(talk[at]) for talk in talks) for at in (0, -1)] for count in _COUNTS)
        tokens = f"{new[0]:.0f} of {prompt[0]:.0f}", f"{new[1]:.0f} of {prompt[1]:.0f}"
        rows.append((way, *medians, f"{medians[2] / medians[0]:.2f}", spread(ratios), percentile(last, 0.9), *tokens))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=14)
    parser.add_argument("--talks", type=int, default=5, help="conversations of each kind")
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "responses.sqlite3")
        with Server.causerie("--store", store, "--engine", arguments.engine) as server:
            sides = throughput(server, arguments.pairs)
            turns: dict[str, list[list[Turn]]] = {way: [] for way in WAYS}
            for way in WAYS:
                conversation(server, way, seed=9999, length=2)
            for talk in range(arguments.talks):
                for way in WAYS:
                    turns[way].append(conversation(server, way, 2 * talk + WAYS.index(way)))
    ratios = [kept / not_kept for kept, not_kept in zip(sides[True].rates, sides[False].rates, strict=True)]
    ratio = statistics.median(sides[True].rates) / statistics.median(sides[False].rates)
    print(machine_line() + "\n")
    headers = (
        *("", "tok/s", "first p50, ms", "p99", "gap p50, ms", "p99"),
        *("server CPU, µs per token", "event loop's"),
    )
    print(table(headers, (sides[True].row("store"), sides[False].row("store: false"))))
    print(f"\nRatio {ratio:.3f}; pairs: median (range) {spread(ratios)}.\n")
    names = (
        *("through", "turn 1, ms", f"turn {TURNS // 2 + 1}", f"turn {TURNS}", "ratio", "each: median (range)"),
        *(f"p90 of turn {TURNS}", "prompt tokens read in turn 1", f"in turn {TURNS}"),
    )
    print(table(names, turn_rows(turns)))
    finish("storing", {"ratio": ratio, "ratios": ratios, "turns": turns})


if __name__ == "__main__":
    main()
