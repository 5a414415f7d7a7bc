"""A load generator that costs little: it shares the processor with what it measures.

Requests are encoded beforehand, connections are open before the clock starts (as in a client's pool), and per
packet it takes the time and counts events; nothing is parsed but the last event. ``python -m benchmarks.load
--url http://127.0.0.1:8000 --streams 16`` measures any OpenAI-compatible server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast
from urllib.parse import urlencode, urlsplit

import uvloop

from benchmarks import prompts
from benchmarks.report import finish, machine_line, percentile, table

_TEXT = re.compile(rb'"(?:content|text|delta)": ?"(?!")')
"""An event that says something: not the opening one, whose content is empty."""
_USAGE = re.compile(rb'"(?:completion|output)_tokens": ?(\d+)')
_ENDS = (b"[DONE]", b"event: response.completed", b"event: response.incomplete")
"""What is in the last event of an answer that is whole; ours is cut at its limit."""
_TAIL = 8192
"""Bytes that are kept of an answer's end: a response's last event holds all of its text."""
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
TIMEOUT = 600.0
"""Seconds for one run."""


class LoadError(Exception):
    """An answer that was not a whole and successful one."""


@dataclass(frozen=True, slots=True)
class Request:
    """The bytes of one HTTP request, and whether its answer is a stream of events or plain text."""

    data: bytes
    events: bool


@dataclass(frozen=True, slots=True)
class Load:
    """One run. Times in seconds; ``first`` has a request's time to its first text, ``gaps`` all between packets."""

    tokens: int
    seconds: float
    first: list[float]
    gaps: list[float]
    longest_gaps: list[float]
    """Each request's longest."""
    cpu: float
    """Seconds of processor time that this process took."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address, and the name of the model to ask for."""

    url: str
    model: str = "default"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def chat(self, turn: str, tokens: int) -> Request:
        """A streamed chat completion of exactly ``tokens`` tokens, greedy, with its usage at the end."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": turn}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return Request(self._post("/v1/chat/completions", "application/json", json.dumps(body).encode()), events=True)

    def response(self, turn: str, tokens: int, *, store: bool, **context: str) -> Request:
        """The same through the Responses API, kept or not."""
        body = {
            "model": self.model,
            "input": turn,
            "stream": True,
            "max_output_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "store": store,
            **context,
        }
        return Request(self._post("/v1/responses", "application/json", json.dumps(body).encode()), events=True)

    def textbot(self, turn: str, tokens: int) -> Request:
        """The tutorial's own request: the prompt in the query, plain text back."""
        query = urlencode({"prompt": turn, "max_tokens": tokens, "temperature": 0, "ignore_eos": "true"})
        return Request(self._post(f"/?{query}", "text/plain", b""), events=False)

    def _post(self, path: str, content_type: str, body: bytes) -> bytes:
        host, port = self.address
        return (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


class Exchange(asyncio.Protocol):
    """One request on a connection of its own; ``done`` is set when its answer has ended."""

    def __init__(self, request: Request, tokens: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrivals: list[float] = []
        self.first: float | None = None
        self.begun = 0.0
        self.tokens = tokens
        self._request = request
        self._head: bytes | None = b""
        self.tail = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def begin(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(self._request.data)

    def leave(self) -> None:
        """Close the connection, whether or not the answer has ended."""
        self.done.cancel()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._head is not None:
            self._head += data
            if _HEAD_END not in self._head:
                return
            head, data = self._head.split(_HEAD_END, 1)
            self._head = None
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                self._end(LoadError(f"{head.decode()}\n\n{data.decode(errors='replace')}"))
                return
        if not data:
            return
        self.arrivals.append(now)
        if self.first is None and (not self._request.events or _TEXT.search(data)):
            self.first = now
        self.tail = (self.tail + data)[-_TAIL:]
        if self.tail.endswith(_LAST_CHUNK):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(LoadError(f"the connection was lost in mid-answer: {self.tail!r}"))

    def _finish(self) -> None:
        if self._request.events:
            usage = _USAGE.findall(self.tail)
            if not usage or not any(end in self.tail for end in _ENDS):
                self._end(LoadError(f"the answer has no proper end: {self.tail!r}"))
                return
            self.tokens = int(usage[-1])
        # An answer may be one control token, which has no text.
        self.first = self.first or self.arrivals[-1]
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error) if error else self.done.set_result(None)


async def open_exchange(target: Target, request: Request, tokens: int) -> Exchange:
    """A connection on which ``request`` is ready to go; ``tokens`` is what a plain-text answer will have."""
    host, port = target.address
    _, exchange = await asyncio.get_running_loop().create_connection(lambda: Exchange(request, tokens), host, port)
    return exchange


async def _run(target: Target, requests: Sequence[Request], tokens: int) -> Load:
    exchanges = [await open_exchange(target, request, tokens) for request in requests]
    cpu = cpu_seconds()
    begin = time.perf_counter()
    try:
        for exchange in exchanges:
            exchange.begin()
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(exchange.done for exchange in exchanges))
        seconds = time.perf_counter() - begin
        cpu = cpu_seconds() - cpu
    finally:
        for exchange in exchanges:
            exchange.leave()
    gaps = [[after - before for before, after in pairwise(exchange.arrivals)] for exchange in exchanges]
    return Load(
        tokens=sum(exchange.tokens for exchange in exchanges),
        seconds=seconds,
        first=[(exchange.first or begin + seconds) - begin for exchange in exchanges],
        gaps=[gap for per_exchange in gaps for gap in per_exchange],
        longest_gaps=[max(per_exchange, default=0.0) for per_exchange in gaps],
        cpu=cpu,
    )


def run(target: Target, turns: Sequence[str], tokens: int) -> Load:
    """A chat completion of ``tokens`` tokens for each of ``turns``, all at once. Raises LoadError."""
    return uvloop.run(_run(target, [target.chat(turn, tokens) for turn in turns], tokens))


def run_requests(target: Target, requests: Sequence[Request], tokens: int) -> Load:
    """These requests, all at once. Raises LoadError."""
    return uvloop.run(_run(target, requests, tokens))


def run_textbot(target: Target, turns: Sequence[str], tokens: int) -> Load:
    """The same through the tutorial's protocol, whose answers do not say how many tokens they have."""
    return uvloop.run(_run(target, [target.textbot(turn, tokens) for turn in turns], tokens))


def cpu_seconds() -> float:
    """Processor time of this process, in all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="default", help="the model to ask for")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=64, help="per request")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    target = Target(arguments.url, arguments.model)
    run(target, prompts.distinct(1, 0), 8)
    rows = []
    for streams in arguments.streams:
        loads = [run(target, prompts.distinct(streams, turn), arguments.tokens) for turn in range(arguments.rounds)]
        gaps = [gap for load in loads for gap in load.gaps]
        rows.append(
            (
                streams,
                statistics.median(load.rate for load in loads),
                1000 * statistics.median(first for load in loads for first in load.first),
                1000 * percentile((first for load in loads for first in load.first), 0.99),
                1000 * statistics.median(gaps),
                1000 * percentile(gaps, 0.99),
                1e6 * sum(load.cpu for load in loads) / sum(load.tokens for load in loads),
            )
        )
    headers = ("streams", "tokens/s", "first p50, ms", "p99", "gap p50, ms", "p99", "generator, µs per token")
    print(machine_line() + "\n")
    print(table(headers, rows))
    finish(
        "load", {"url": arguments.url, "rows": [dict(zip(("streams", *headers[1:]), row, strict=True)) for row in rows]}
    )


if __name__ == "__main__":
    main()
