"""What reading ahead is worth: the first token after Enter of prompts that were typed, pasted or streamed up.

- *typed*: a prompt arrives at ``--pace`` characters a second and is committed 50 ms after the last;
- *pasted*: all of it at once, committed three seconds later;
- *beside four streams*: typed while four answers are written; what their readers saw of it meanwhile, and for as long
  before anything was typed;
- *HTTP body*: the same text through ``PUT /`` of a server, chunk by chunk, against a short prompt there.

Each first token stands over that of a prompt with 64 uncached tokens in the same run, and beside the same prompt's
cold. All but the last are measured on the service itself. ``--full`` types the last half minute of every prompt at
60 characters a second, as a fast typist does, what is before it at ``--pace``; beside streams it is the last one and
a half, and the gaps are of that time. That takes some fifteen minutes.
``--url`` names another server that speaks the OpenAI API (llama-server), for the same prompts cold there.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import uvloop

from benchmarks import prompts
from benchmarks.load import Target, run
from benchmarks.report import Cell, finish, machine_line, table
from benchmarks.server import Server
from causerie.chat.build import build_service
from causerie.chat.garbage import keep_for_good
from causerie.chat.log import ResponseLog
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.types import CancelCause, ChatPrompt, GenerationRequest, Message, SamplingParams, TextDelta

SIZES = (500, 2000, 4000)
SHORT = 64
TICK = 0.05
"""Seconds between two arrivals of typed text."""
TYPIST = 60.0
"""Characters a second."""
TYPED = int(30 * TYPIST)
"""How many of its last characters come at that pace with ``--full``."""
TYPED_BESIDE = int(90 * TYPIST)
BEFORE_ENTER = 0.05
AFTER_PASTE = 3.0
STREAMS = 4
APART = 8
"""Tokens by which their prompts differ: people do not all begin a block of the cache in the same step."""
SETTLED = 4.0
"""Seconds after which the streams' gaps are looked at, for as long as the typing will take, then while it does."""
HEADERS = ("prompt", "tokens", "typed at, characters/s", "read at commit", "first token, ms", "÷ short", "cold, ms")
BESIDE_HEADERS = (
    *("tokens", "characters/s", "gap alone, ms", "p99 above it", "longest above it"),
    *("gap meanwhile", "p99 above", "longest above", "read at commit", "first token, ms"),
)


@dataclass(slots=True)
class Findings:
    """One kind and size of prompt; times in milliseconds, one for each round."""

    kind: str
    tokens: int
    pace: float | None
    share: list[float] = field(default_factory=list)
    """Of the whole prompt, read when it was committed."""
    first: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)

    def row(self, short: float) -> tuple[Cell, ...]:
        return (
            self.kind,
            self.tokens,
            "-" if self.pace is None else f"{self.pace:g}",
            f"{100 * min(self.share):.0f} %" if self.share else "-",
            statistics.median(self.first),
            f"{statistics.median(self.first) / short:.2f}",
            statistics.median(self.cold) if self.cold else "-",
        )


class Texts:
    """New texts, none of which begins like another."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._seeds = itertools.count(1)

    def of(self, tokens: int) -> str:
        """A user's turn that makes a prompt of about ``tokens`` tokens."""
        seed = next(self._seeds)
        words = max(1, int(tokens / 1.3))
        for _ in range(3):
            words = max(1, round(words * tokens / self._count(prompts.words(words, seed))))
        return prompts.words(words, seed)


class Desk:
    """The service, and one who types into it."""

    def __init__(self, service: ChatService, typed: int = 0) -> None:
        self._service = service
        self._typed = typed
        self._numbers = itertools.count()
        self.shorts: list[float] = []
        """Milliseconds to the first text of prompts of ``SHORT`` tokens, between the others."""
        self.texts = Texts(lambda text: len(service.text.encode(_prompt(text))))

    async def answer(self, prompt: ChatPrompt, tokens: int = 1) -> ResponseLog:
        # Nothing but text: control tokens, which whoever ignores the end of text gets as well, would look like gaps.
        sampling = SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0.0)
        return await self._service.create(GenerationRequest(f"b{next(self._numbers)}", prompt, sampling))

    async def first(self, prompt: ChatPrompt) -> float:
        """Milliseconds to the first text."""
        begin = time.perf_counter()
        async with (await self.answer(prompt)).reader() as reader:
            async for _, event in reader:
                if isinstance(event, TextDelta):
                    break
            return 1000 * (time.perf_counter() - begin)

    async def type(self, text: str, pace: float | None, typed: int) -> tuple[float, float]:
        """The share of the prompt that was read at commit, and the milliseconds from there to the first text.

        ``typed``: how many of its last characters come as a typist types, whatever the pace of those before.
        """
        typing = self._service.typing(_prompt(""))
        try:
            if pace is None:
                typing.append(text)
                await asyncio.sleep(AFTER_PASTE)
            else:
                async for piece in at_pace(text, pace, typed):
                    typing.append(piece)
                await asyncio.sleep(BEFORE_ENTER)
            share = typing.read / len(self._service.text.encode(_prompt(text)))
            begin = time.perf_counter()
            prompt = await typing.commit()
            waited = 1000 * (time.perf_counter() - begin)
            assert isinstance(prompt, ChatPrompt)
            return share, waited + await self.first(prompt)
        finally:
            typing.close()

    async def measure(self, kind: str, tokens: int, pace: float | None, rounds: int) -> Findings:
        findings = Findings(kind, tokens, pace)
        for _ in range(rounds):
            share, first = await self.type(self.texts.of(tokens), pace, self._typed)
            findings.share.append(share)
            findings.first.append(first)
            findings.cold.append(await self.first(_prompt(self.texts.of(tokens))))
            self.shorts += [await self.first(_prompt(self.texts.of(SHORT))) for _ in range(3)]
        return findings

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[list[list[float]]]:
        """Four answers that are being written; the times at which their readers had something of them."""
        sizes = [SHORT + APART * place for place in range(STREAMS)]
        logs = [await self.answer(_prompt(self.texts.of(size)), 8000) for size in sizes]
        arrivals: list[list[float]] = [[] for _ in logs]

        async def read(log: ResponseLog, times: list[float]) -> None:
            async with log.reader() as reader:
                async for _, event in reader:
                    if isinstance(event, TextDelta):
                        times.append(time.perf_counter())

        readers = [asyncio.create_task(read(log, times)) for log, times in zip(logs, arrivals, strict=True)]
        await asyncio.sleep(SETTLED)
        try:
            yield arrivals
        finally:
            for log in logs:
                log.cancel(CancelCause.STOPPED)
            await asyncio.gather(*readers)

    async def beside(self, tokens: int, pace: float) -> tuple[Cell, ...]:
        """A row: what four streams' readers saw while a prompt was typed, and what was read of it."""
        text, typed = self.texts.of(tokens), TYPED_BESIDE if self._typed else 0
        async with self.streams() as arrivals:
            begin = time.perf_counter()
            async for _ in at_pace(text[-typed:], pace, typed):
                pass
            alone = sorted(_gaps(arrivals, begin, time.perf_counter()))
            begin = time.perf_counter()
            share, first = await self.type(text, pace, typed)
            end = time.perf_counter() - first / 1000
            if typed:
                begin = end - BEFORE_ENTER - min(typed, len(text)) / TYPIST
            gaps = sorted(_gaps(arrivals, begin, end))
        row: list[Cell] = [tokens, f"{pace:g}"]
        for sample in (alone, gaps):
            median = statistics.median(sample)
            row += [
                1000 * median,
                *(1000 * (longest - median) for longest in (sample[int(0.99 * len(sample))], sample[-1])),
            ]
        return (*row, f"{100 * share:.0f} %", first)


async def at_pace(text: str, pace: float, typed: int = 0) -> AsyncIterator[str]:
    """``text`` in pieces, ``pace`` characters a second; the last ``typed`` of them as a typist types."""
    head = max(0, len(text) - typed)
    for part, speed in (text[:head], pace), (text[head:], TYPIST):
        begin, sent = time.perf_counter(), 0
        while sent < len(part):
            await asyncio.sleep(TICK)
            due = min(len(part), int(speed * (time.perf_counter() - begin)))
            yield part[sent:due]
            sent = due


async def put(target: Target, text: str, pace: float | None, typed: int = 0) -> float:
    """Milliseconds from the end of a body to the first of its answer."""
    host, port = target.address
    reader, writer = await asyncio.open_connection(host, port)
    query = "max_tokens=1&temperature=0&ignore_eos=true"
    writer.write(f"PUT /?{query} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    async for piece in at_pace(text, pace, typed) if pace is not None else _once(text):
        if piece:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece.encode()))
    await asyncio.sleep(BEFORE_ENTER if pace is not None else 0)
    begin = time.perf_counter()
    writer.write(b"0\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head, head
    await reader.readline()
    seconds = time.perf_counter() - begin
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return 1000 * seconds


async def _once(text: str) -> AsyncIterator[str]:
    yield text


def _prompt(text: str) -> ChatPrompt:
    return ChatPrompt((Message("user", text),))


def _gaps(arrivals: list[list[float]], begin: float, end: float) -> list[float]:
    return [b - a for times in arrivals for a, b in pairwise(time for time in times if begin <= time <= end)]


async def on_service(arguments: argparse.Namespace) -> tuple[float, list[tuple[Cell, ...]], list[tuple[Cell, ...]]]:
    service = build_service(Settings())
    await service.start()
    keep_for_good()
    try:
        desk = Desk(service, arguments.typed)
        await desk.first(_prompt("Warm up."))
        rounds = arguments.rounds
        found = [await desk.measure("typed", size, arguments.pace, rounds) for size in arguments.sizes]
        found += [await desk.measure("pasted", size, None, rounds) for size in arguments.sizes]
        beside = [await desk.beside(size, arguments.pace_beside) for size in arguments.sizes]
        short = statistics.median(desk.shorts)
        return short, [findings.row(short) for findings in found], beside
    finally:
        await service.stop()


async def on_server(target: Target, texts: Texts, arguments: argparse.Namespace) -> list[tuple[Cell, ...]]:
    await put(target, "Warm up.", None)
    rounds = arguments.rounds
    short = statistics.median([await put(target, texts.of(SHORT), None) for _ in range(3 * rounds)])
    rows = []
    for size in arguments.sizes:
        findings = Findings("HTTP body", size, arguments.pace)
        for _ in range(rounds):
            findings.first.append(await put(target, texts.of(size), arguments.pace, arguments.typed))
            findings.cold.append(await put(target, texts.of(size), None))
        rows.append(findings.row(short))
    return rows


def elsewhere(target: Target, texts: Texts, short: float, arguments: argparse.Namespace) -> list[tuple[Cell, ...]]:
    """The same prompts on a server that reads nothing ahead, where all of them are cold."""
    run(target, ["Warm up."], 1)
    rows = []
    for size in (SHORT, *arguments.sizes):
        first = [1000 * run(target, [texts.of(size)], 1).first[0] for _ in range(arguments.rounds)]
        rows.append(Findings(f"{arguments.name}, cold", size, None, first=first).row(short))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="prompts, in tokens")
    parser.add_argument("--pace", type=float, default=2000.0, help="characters a second, typed alone and by HTTP")
    parser.add_argument("--pace-beside", type=float, default=800.0, help="the same beside four streams")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--url", help="another server, running, for the same prompts cold there")
    parser.add_argument("--name", default="llama-server", help="what it is called in the table")
    parser.add_argument("--full", action="store_true", help="60 characters a second at the end of each")
    arguments = parser.parse_args()
    arguments.typed = TYPED if arguments.full else 0
    short, rows, beside = uvloop.run(on_service(arguments))
    with Server.causerie() as server:
        texts = Texts(lambda text: round(1.22 * len(text.split())) + 30)
        rows += uvloop.run(on_server(server.target, texts, arguments))
    rows += elsewhere(Target(arguments.url, "default"), texts, short, arguments) if arguments.url else []
    print(machine_line() + "\n")
    print(f"A prompt of {SHORT} uncached tokens: {short:.0f} ms.\n")
    if arguments.full:
        print(
            f"The last {TYPED} characters of each came at {TYPIST:.0f} a second, those before as the tables say. "
            f"Beside streams it was {TYPED_BESIDE}, and the gaps are of that time.\n"
        )
    print(table(HEADERS, rows) + "\n")
    print(table(BESIDE_HEADERS, beside))
    finish("ahead", {"short": short, "rows": [dict(zip(HEADERS, row, strict=True)) for row in rows], "beside": beside})


if __name__ == "__main__":
    main()
