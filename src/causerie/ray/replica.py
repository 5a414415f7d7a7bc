"""One engine of the pool, inside a Ray Serve replica: token ids in, updates out, one channel per caller.

What must be near the engine is here: the reading of long prompts in pieces, and the bound on its KV cache. Text,
protocols, admission and response logs are the ingress's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import generate_latest

from causerie.chat.admission import Admission, Ticket
from causerie.chat.metrics import PREFIX
from causerie.chat.reading import PromptReader, Reading
from causerie.engines.base import EndReason, Engine, EngineInfo, Update
from causerie.errors import CauserieError
from causerie.types import SamplingParams, TokenLogprob

CHECK_SECONDS = 2.0
"""How often it is checked that the callers are still there, while they have something running."""

LINGER_SECONDS = 5.0
"""How long a channel stays open for a caller that has nothing running. A replica that is drained waits for it."""

logger = logging.getLogger("causerie.ray")


class Gain(NamedTuple):
    """An ``Update`` on its way, under its caller's number for the sequence: a tuple costs a tenth to pickle."""

    key: int
    ids: Sequence[int]
    logprobs: Sequence[TokenLogprob]
    ended: EndReason | None
    detail: str
    cached_tokens: int | None


@dataclass(slots=True)
class _Outbox:
    """What a caller's sequences gained and nobody has fetched, and which of them end with it."""

    gains: list[Gain] = field(default_factory=list)
    ending: list[asyncio.Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    sequences: int = 0
    channels: int = 0

    def put(self, key: int, update: Update, over: asyncio.Event) -> None:
        self.gains.append(Gain(key, update.ids, update.logprobs, update.ended, update.detail, update.cached_tokens))
        if update.ended is not None:
            self.ending.append(over)
        self.changed.set()

    def take(self) -> list[Gain]:
        """Everything there is. Whoever ends with it is told that it was fetched."""
        self.changed.clear()
        for over in self.ending:
            over.set()
        gains, self.gains, self.ending = self.gains, [], []
        return gains


@dataclass(slots=True)
class _Sequence:
    """A sequence on its way, and what it holds; ``key`` is its caller's number for it."""

    caller: str
    key: int
    outbox: _Outbox
    ticket: Ticket
    over: asyncio.Event
    submitted: bool = False
    reading: Reading | None = None
    read_ahead: Reading | None = None
    """The reading that is over, until the engine has said how much of the prompt it found."""


class EngineHost:
    """Runs one engine for many callers. All of it lives on the event loop on which ``start`` was awaited.

    ``is_gone`` says of a caller whether its process has ended; it may block, and runs in a thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        prefill_piece: int,
        is_gone: Callable[[str], bool],
        check_seconds: float = CHECK_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        info = engine.info
        self._is_gone = is_gone
        self._check_seconds = check_seconds
        self._linger_seconds = linger_seconds
        self._watching: asyncio.Task[None] | None = None
        self._engine = engine
        self._numbers = itertools.count(1)
        self._reader = PromptReader(
            engine, piece=prefill_piece, next_sequence=lambda: next(self._numbers), ahead=self._next_ahead
        )
        self._ahead: deque[Reading] = deque()
        # Who may come in at all is decided by the ingress and by Ray's max_ongoing_requests.
        self._admission = Admission(
            max_sequences=info.max_sequences, kv_tokens=info.kv_tokens, max_waiting=2 * info.max_sequences
        )
        self._sequences: dict[int, _Sequence] = {}
        self._outboxes: dict[tuple[str, int], _Outbox] = {}
        self._prompt_tokens = self._known_tokens = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def metrics(self) -> bytes:
        """What this engine has to say to Prometheus; tokens and times are the ingress's to tell."""
        registry = CollectorRegistry(auto_describe=False)
        stats = self._engine.stats()
        for name, help_text, value in (
            ("engine_sequences_running", "Sequences that this engine is working on.", stats.running),
            ("engine_kv_cache_usage_perc", "Share of this engine's KV cache in use, 0 to 1.", stats.kv_usage),
            ("engine_steps", "Steps that this engine has taken.", stats.steps),
            ("engine_prompt_tokens", "Prompt tokens that were given to this engine.", self._prompt_tokens),
            ("engine_prompt_tokens_known", "Those of them that it probably had in its cache.", self._known_tokens),
        ):
            Gauge(PREFIX + name, help_text, registry=registry).set(value)
        return generate_latest(registry)

    async def start(self) -> None:
        """Load the model. Raises ModelUnavailable."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._engine.start, self._deliver)

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.to_thread(self._engine.stop)

    async def generate(
        self, caller: str, channel: int, key: int, prompt: Sequence[int], sampling: SamplingParams
    ) -> None:
        """Run a sequence, whose gains go to this channel of its caller under the number ``key``.

        Returns when the channel has taken the last of them. Cancelling it cancels the sequence.
        """
        number = next(self._numbers)
        outbox = self._outboxes.setdefault((caller, channel), _Outbox())
        outbox.sequences += 1
        over = asyncio.Event()
        try:
            self._enter(number, _Sequence(caller, key, outbox, self._admission.enter(), over), prompt, sampling)
        except CauserieError as error:
            self._forget(number)
            outbox.put(key, Update(number, ended=EndReason.ERROR, detail=str(error)), over)
        try:
            await over.wait()
        finally:
            self._leave(number)
            outbox.sequences -= 1
            outbox.changed.set()
            self._tidy(caller, channel)

    async def prefill(self, prompt: Sequence[int], *, gently: bool) -> int | None:
        """Read it ahead, in one piece, when nobody waits here; see ``Engine.prefill``. Cancelling it stops that.

        Returns how much of it was cached, None where the engine cannot say. Raises CauserieError where it failed.
        """
        while True:
            reading, failure = await self._read(prompt, gently)
            if failure is None:
                return reading.cached
            if not reading.interrupted:
                raise CauserieError(failure.detail or "The engine did not read it.")

    async def _read(self, prompt: Sequence[int], gently: bool) -> tuple[Reading, Update | None]:
        """Once; with the update that says why it was not read, if it was not."""
        done: asyncio.Future[Update | None] = asyncio.get_running_loop().create_future()
        reading = Reading(prompt, len(prompt), 0, len(prompt), lambda _: None, done.set_result, gently=gently)
        self._ahead.append(reading)
        self._reader.wake()
        try:
            return reading, await done
        except asyncio.CancelledError:
            if reading in self._ahead:
                self._ahead.remove(reading)
            else:
                self._reader.cancel(reading, lambda: None)
            raise

    def _next_ahead(self) -> Reading | None:
        return self._ahead.popleft() if self._ahead and not self._admission.waiting else None

    async def gains(self, caller: str, channel: int) -> AsyncGenerator[list[Gain]]:
        """A channel: what the sequences gain that were given its number, a list for each step. It has one reader.

        It begins with an empty list, and ends when there has been nothing running for it for a while.
        """
        outbox = self._outboxes.setdefault((caller, channel), _Outbox())
        outbox.channels += 1
        try:
            yield []
            while True:
                try:
                    async with asyncio.timeout(None if outbox.sequences else self._linger_seconds):
                        await outbox.changed.wait()
                except TimeoutError:
                    return
                if gains := outbox.take():
                    yield gains
        finally:
            outbox.channels -= 1
            self._tidy(caller, channel)

    def _enter(self, number: int, sequence: _Sequence, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self._sequences[number] = sequence
        wanted = self.info.sequence_kv_tokens(len(prompt), sampling.max_tokens)
        sequence.ticket.request(1, wanted, lambda: self._begin(number, prompt, sampling))
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), context=Context())

    async def _watch(self) -> None:
        """Cancel what was asked for by a process that is gone: when a caller dies, Ray does not tell the called."""
        while self._sequences:
            await asyncio.sleep(self._check_seconds)
            callers = {sequence.caller for sequence in self._sequences.values()}
            try:
                gone = set(await asyncio.to_thread(list, filter(self._is_gone, callers)))
            except Exception as error:
                logger.warning("cannot tell who is still there: %s", error)
                continue
            for sequence in list(self._sequences.values()):
                if sequence.caller in gone:
                    sequence.over.set()

    def _begin(self, number: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        sequence = self._sequences[number]
        self._prompt_tokens += len(prompt)
        self._known_tokens += self._engine.cached(prompt)

        def submit(failure: Update | None) -> None:
            sequence.read_ahead, sequence.reading = sequence.reading, None
            if failure is not None:
                self._push(sequence, Update(number, ended=failure.ended, detail=failure.detail))
                return
            sequence.submitted = True
            self._engine.submit(number, prompt, sampling)

        sequence.reading = self._reader.begin(prompt, whole=False, on_progress=lambda _: None, on_ready=submit)
        if sequence.reading is None:
            submit(None)

    def _leave(self, number: int) -> None:
        """Its caller is gone or has everything; what still runs of it is cancelled, and ``_push`` sees its end."""
        sequence = self._sequences.get(number)
        if sequence is None:
            return
        if sequence.reading is not None:
            self._reader.cancel(sequence.reading, lambda: self._forget(number))
        elif sequence.submitted:
            self._engine.cancel(number)
        else:
            self._forget(number)

    def _push(self, sequence: _Sequence, update: Update) -> None:
        if update.ids and sequence.read_ahead is not None:
            update = replace(update, cached_tokens=sequence.read_ahead.cached_before(update.cached_tokens))
            sequence.read_ahead = None
        sequence.outbox.put(sequence.key, update, sequence.over)
        if update.ended is not None:
            self._forget(update.sequence)

    def _forget(self, number: int) -> None:
        sequence = self._sequences.pop(number, None)
        if sequence is not None:
            sequence.ticket.release()

    def _tidy(self, caller: str, channel: int) -> None:
        outbox = self._outboxes.get((caller, channel))
        if outbox is not None and not outbox.sequences and not outbox.channels:
            del self._outboxes[caller, channel]

    def _deliver(self, updates: Sequence[Update]) -> None:
        """On the engine's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._on_step, updates)

    def _on_step(self, updates: Sequence[Update]) -> None:
        for update in updates:
            sequence = self._sequences.get(update.sequence)
            if sequence is not None:
                self._push(sequence, update)
            else:
                self._reader.update(update)
        self._reader.wake()
