"""One engine of the pool, inside a Ray Serve replica: token ids in, updates out, one stream per sequence.

What must be near the engine is here: the reading of long prompts in pieces, and the bound on its KV cache. Text,
protocols, admission and response logs are the ingress's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import generate_latest

from causerie.chat.admission import Admission, Ticket
from causerie.chat.metrics import PREFIX
from causerie.chat.reading import PromptReader, Reading
from causerie.engines.base import EndReason, Engine, EngineInfo, Update
from causerie.errors import CauserieError
from causerie.types import SamplingParams

CHECK_SECONDS = 2.0
"""How often it is checked that the callers are still there, while they have something running."""


@dataclass(slots=True)
class _Stream:
    """A sequence on its way: what it gained and nobody has fetched, and what it holds."""

    caller: str
    ticket: Ticket
    updates: list[Update]
    changed: asyncio.Event
    submitted: bool = False
    reading: Reading | None = None
    read_ahead: Reading | None = None
    """The reading that is over, until the engine has said how much of the prompt it found."""


logger = logging.getLogger("causerie.ray")


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
    ) -> None:
        info = engine.info
        self._is_gone = is_gone
        self._check_seconds = check_seconds
        self._watching: asyncio.Task[None] | None = None
        self._engine = engine
        self._numbers = itertools.count(1)
        self._reader = PromptReader(engine, piece=prefill_piece, next_sequence=lambda: next(self._numbers))
        # Who may come in at all is decided by the ingress and by Ray's max_ongoing_requests.
        self._admission = Admission(
            max_sequences=info.max_sequences, kv_tokens=info.kv_tokens, max_waiting=2 * info.max_sequences
        )
        self._streams: dict[int, _Stream] = {}
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

    async def _watch(self) -> None:
        """Cancel what was asked for by a process that is gone: when a caller dies, Ray does not tell the called."""
        while self._streams:
            await asyncio.sleep(self._check_seconds)
            callers = {stream.caller for stream in self._streams.values()}
            try:
                gone = set(await asyncio.to_thread(list, filter(self._is_gone, callers)))
            except Exception as error:
                logger.warning("cannot tell who is still there: %s", error)
                continue
            for number, stream in list(self._streams.items()):
                if stream.caller in gone:
                    self._leave(number)
                    stream.updates.append(Update(number, ended=EndReason.CANCELLED))
                    stream.changed.set()

    async def generate(
        self, caller: str, prompt: Sequence[int], sampling: SamplingParams
    ) -> AsyncGenerator[list[Update]]:
        """Everything one sequence gains; the last update has ended. Closing the iterator cancels the sequence.

        The numbers in the updates are this engine's own.
        """
        number = next(self._numbers)
        try:
            stream = self._streams[number] = _Stream(caller, self._admission.enter(), [], asyncio.Event())
            wanted = self.info.sequence_kv_tokens(len(prompt), sampling.max_tokens)
            stream.ticket.request(1, wanted, lambda: self._begin(number, prompt, sampling))
        except CauserieError as error:
            self._forget(number)
            yield [Update(number, ended=EndReason.ERROR, detail=str(error))]
            return
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), context=Context())
        try:
            while True:
                await stream.changed.wait()
                stream.changed.clear()
                updates, stream.updates = stream.updates, []
                yield updates
                if updates[-1].ended is not None:
                    return
        finally:
            self._leave(number)

    def _begin(self, number: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        stream = self._streams[number]
        self._prompt_tokens += len(prompt)
        self._known_tokens += self._engine.cached(prompt)

        def submit(failure: Update | None) -> None:
            stream.read_ahead, stream.reading = stream.reading, None
            if failure is not None:
                self._push(number, Update(number, ended=failure.ended, detail=failure.detail))
                return
            stream.submitted = True
            self._engine.submit(number, prompt, sampling)

        stream.reading = self._reader.begin(prompt, whole=False, on_progress=lambda _: None, on_ready=submit)
        if stream.reading is None:
            submit(None)

    def _leave(self, number: int) -> None:
        """Its caller is gone or has everything; what still runs of it is cancelled, and ``_push`` sees its end."""
        stream = self._streams.get(number)
        if stream is None:
            return
        if stream.reading is not None:
            self._reader.cancel(stream.reading, lambda: self._forget(number))
        elif stream.submitted:
            self._engine.cancel(number)
        else:
            self._forget(number)

    def _push(self, number: int, update: Update) -> None:
        stream = self._streams[number]
        if update.ids and stream.read_ahead is not None:
            update = replace(update, cached_tokens=stream.read_ahead.cached_before(update.cached_tokens))
            stream.read_ahead = None
        stream.updates.append(update)
        stream.changed.set()
        if update.ended is not None:
            self._forget(number)

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.ticket.release()

    def _deliver(self, updates: Sequence[Update]) -> None:
        """On the engine's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._on_step, updates)

    def _on_step(self, updates: Sequence[Update]) -> None:
        for update in updates:
            if update.sequence in self._streams:
                self._push(update.sequence, update)
            else:
                self._reader.update(update)
