"""The real server on an event loop of its own thread, and what must be true of it after every attack."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import uvloop

from causerie.chat.build import scripted_service
from causerie.chat.log import ResponseLog
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.engines.base import Deliver, Engine, Update
from causerie.engines.scripted import Script, ScriptedEngine
from causerie.types import SamplingParams
from tests.support.raw import Answer, ChatSocket, Connection
from tests.support.server import running_server

T = TypeVar("T")

CANARY = "Canary, are you well?"
SONG = "I am well."
WAYS = ("events", "text", "socket", "whole")
"""How an answer is asked for: server-sent events, plain text, the chat socket, or JSON that is not streamed."""
STREAMED = WAYS[:3]


class Watch:
    """A record of what goes into an engine and comes out of it; the engine stays what it is."""

    def __init__(self, engine: Engine) -> None:
        self.prompts: dict[int, list[int]] = {}
        """By sequence: the ids of every prompt that was submitted."""
        self.answers: dict[int, list[int]] = {}
        self.running: set[int] = set()
        self.most_running = 0
        self._lock = threading.Lock()
        self._start, self._submit, self._prefill = engine.start, engine.submit, engine.prefill
        for name, watched in {"start": self.start, "submit": self.submit, "prefill": self.prefill}.items():
            setattr(engine, name, watched)

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._start(self._watch)

    def submit(self, sequence: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        with self._lock:
            self.prompts[sequence] = list(prompt)
            self.answers[sequence] = []
            self.running.add(sequence)
            self.most_running = max(self.most_running, len(self.running))
        self._submit(sequence, prompt, sampling)

    def prefill(self, sequence: int, prompt: Sequence[int], *, gently: bool = False) -> None:
        with self._lock:
            self.running.add(sequence)
        self._prefill(sequence, prompt, gently=gently)

    def _watch(self, updates: Sequence[Update]) -> None:
        with self._lock:
            for update in updates:
                if update.sequence in self.answers:
                    self.answers[update.sequence] += update.ids
                if update.ended is not None:
                    self.running.discard(update.sequence)
        self._deliver(updates)


class Heart:
    """Beats on a loop, and knows for how long, in seconds, it was kept from beating."""

    longest_stall = 0.0

    async def beat(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            self.longest_stall = max(self.longest_stall, time.perf_counter() - before - 0.002)


class Served:
    """A server that runs, its service, and clients for it. Made by ``served``."""

    def __init__(self, service: ChatService, permits: threading.Semaphore | None) -> None:
        self.service = service
        self.watch = Watch(service.engine)
        self.permits = permits
        self.url = ""
        self.song = ""
        self.errors: list[str] = []
        self.loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._clients: list[Connection] = []
        self.baseline = 0

    def connect(self, **options: Any) -> Connection:
        return self._keep(Connection(self.address, **options))

    def socket(self, **options: Any) -> ChatSocket:
        """An open chat socket."""
        return self.bare_socket(**options).open()

    def bare_socket(self, **options: Any) -> ChatSocket:
        """A chat socket that is not asked for yet."""
        socket = ChatSocket(self.address, **options)
        self._clients.append(socket)
        return socket

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Connection:
        """A connection on which this was sent."""
        return self.connect().request(method, path, body, headers)

    def chat(self, text: str = "Hi", headers: Mapping[str, str] | None = None, **fields: Any) -> Connection:
        return self.request("POST", "/v1/chat/completions", chat_body(text, **fields), headers)

    def begin(self, way: str, text: str = "Hi", **fields: Any) -> Connection:
        """Ask for an answer in one of ``WAYS``; nothing of it is read."""
        if way == "socket":
            return self.socket().text(text)
        if way == "text":
            return self.say(text)
        return self.chat(text, stream=way == "events", **fields)

    def say(self, text: str = "Hi", query: str = "") -> Connection:
        return self.request("POST", "/" + query, text.encode())

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        with Connection(self.address) as connection:
            return connection.request(method, path, body, headers).answer()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    def metric(self, name: str) -> float:
        """A sample as ``/metrics`` tells it; ``name`` without the prefix, with its labels if it has some."""
        return metric_of(self.ask("GET", "/metrics").body, name)

    def on_loop(self, call: Callable[[], T]) -> T:
        """Call it on the server's event loop."""

        async def calling() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(calling(), self.loop).result(10)

    @contextmanager
    def heart(self) -> Iterator[Heart]:
        """Something that beats on the server's event loop meanwhile."""
        heart = Heart()
        beating = asyncio.run_coroutine_threadsafe(heart.beat(), self.loop)
        try:
            yield heart
        finally:
            beating.cancel()

    def sing(self) -> str:
        """The canary's greedy answer."""
        body = chat_body(CANARY, temperature=0, max_tokens=12)
        answer = self.ask("POST", "/v1/chat/completions", body)
        assert answer.status == 200, answer
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text

    def idle(self, within: float = 1.0) -> None:
        """Nothing runs and nothing waits, within so many seconds."""
        until(lambda: not (self.service.running or self.service.waiting), within)

    def check_aftermath(self) -> None:
        """Nothing is left of any client, and the canary still sings."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.permits is not None:
            self.permits.release(100_000)
        service = self.service
        self.idle(within=5.0)
        until(lambda: not (service._responses or service._sequences or service._lingering or self.watch.running), 5.0)
        assert self.service.engine.stats().running == 0
        assert (self.metric("num_requests_running"), self.metric("num_requests_waiting")) == (0, 0)
        assert self.sing() == self.song
        until(lambda: self.tasks() <= self.baseline, 5.0)
        errors, self.errors[:] = list(self.errors), []
        assert not errors, errors

    def tasks(self) -> int:
        """Tasks of the server's loop, less the one that counts them."""
        return self.on_loop(lambda: len(asyncio.all_tasks())) - 1

    def _keep(self, connection: Connection) -> Connection:
        self._clients.append(connection)
        return connection

    def _run(self, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with running_server(self.service) as self.url:
            ready.set()
            await self._stop.wait()


@contextmanager
def served(
    service: ChatService, *, song: str | None = None, permits: threading.Semaphore | None = None
) -> Iterator[Served]:
    """Serve ``service``; at the end check that nothing is left over. Without ``song`` it is recorded now, alone."""
    server = Served(service, permits)
    ready = threading.Event()
    thread = threading.Thread(target=server._run, args=(ready,), name="served", daemon=True)
    listener = _ErrorListener(server.errors)
    logging.getLogger().addHandler(listener)
    thread.start()
    try:
        assert ready.wait(60)
        server.song = server.sing() if song is None else song
        server.baseline = server.tasks()
        yield server
        server.check_aftermath()
    finally:
        if permits is not None:
            permits.release(100_000)
        server.loop.call_soon_threadsafe(server._stop.set)
        thread.join(30)
        logging.getLogger().removeHandler(listener)
    assert not thread.is_alive()


def scripted(script: Script, settings: Settings, **engine: Any) -> ChatService:
    """The service on the scripted engine; the canary has its song, ``script`` all else."""
    return scripted_service(settings, ScriptedEngine(_with_canary(script), **engine))


def _with_canary(script: Script) -> Script:
    spelled = CANARY.encode()

    def answer(prompt: Sequence[int]) -> Iterable[int]:
        said = bytes(id_ for id_ in prompt if id_ < 256)
        return SONG.encode() if spelled in said else script(prompt)

    return answer


class _ErrorListener(logging.Handler):
    """What the server logs as an error is a fault of the server's: no client can cause one."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


def chat_body(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | fields


def metric_of(page: bytes, name: str) -> float:
    found = re.findall(rf"^causerie:{re.escape(name)} (\S+)$", page.decode(), re.MULTILINE)
    assert len(found) == 1, (name, found)
    return float(found[0])


def first_text(connection: Connection) -> None:
    """Read a streamed answer up to its first text."""
    if isinstance(connection, ChatSocket):
        connection.frame()
    else:
        connection.head()
        while connection.chunk().startswith(b":"):
            pass


def until(condition: Callable[[], object], within: float) -> None:
    """Wait until ``condition`` holds; fails after so many seconds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not so within {within} s"
        time.sleep(0.002)


def logs_alive() -> int:
    """Response logs that somebody still holds."""
    gc.collect()
    return sum(type(thing) is ResponseLog for thing in gc.get_objects())


def open_files() -> int:
    """File descriptors of this process, sockets included."""
    with contextlib.suppress(FileNotFoundError):
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    return 0
