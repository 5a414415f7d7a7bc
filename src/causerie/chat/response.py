"""One request inside the service: its log, its ticket, its sequences, and the verbs that move it on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from causerie.chat.admission import Ticket
from causerie.chat.choice import Choice
from causerie.chat.intake import Encoded
from causerie.chat.log import ResponseLog
from causerie.chat.metrics import Metrics
from causerie.chat.reading import PromptReader, Reading
from causerie.chat.records import text_of
from causerie.engines.base import EndReason, Engine, Update
from causerie.errors import CauserieError, EngineError, EngineOutOfMemory
from causerie.text.model import TextModel
from causerie.text.turns import Miss, Seen
from causerie.types import (
    CancelCause,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Part,
    PrefillProgress,
    Queued,
    SamplingParams,
    Started,
    TextDelta,
    Usage,
)

logger = logging.getLogger("causerie.chat")


class Owner(Protocol):
    """What a response needs of the service that it belongs to."""

    engine: Engine
    text: TextModel
    metrics: Metrics
    reader: PromptReader

    def open_sequence(self, response: Response, choice: Choice) -> None: ...

    def settled(self, response: Response) -> None:
        """The log has its terminal event and the engine holds none of the sequences any more."""


@dataclass(slots=True)
class Turn:
    """A response as a turn of a conversation: what the model has ``seen`` before it, and ``after`` it.

    ``continues`` is whether there was anything before that might have been seen. ``after`` is there once the log has
    ended, as far as anything was said.
    """

    seen: Seen | None = None
    continues: bool = False
    after: Seen | None = None


class Response:
    """Moves from waiting to reading to running to ended, and never back.

    Two ends are kept apart: the log's (a reader is told at once) and the engine's (the permit returns only when
    the engine is done with a sequence).
    """

    def __init__(
        self,
        owner: Owner,
        request: GenerationRequest,
        log: ResponseLog,
        ticket: Ticket,
        prompt: Encoded,
        sampling: SamplingParams,
        arrived: float,
        turn: Turn | None = None,
    ) -> None:
        self.log = log
        self._turn = turn
        self._chat = prompt.chat
        self._owner = owner
        self._request = request
        self._ticket = ticket
        self._ids = prompt.ids
        self._sampling = sampling
        self._dropped = prompt.dropped_messages
        self._reading: Reading | None = None
        self._read_ahead: Reading | None = None
        self._choices: list[Choice] = []
        self._open: set[int] = set()
        self._parts: list[Part] = []
        self._cached: int | None = None
        self._arrived = arrived
        self._said_first = False
        self._over = False
        self._position = 0

    def enqueue(self) -> None:
        """Ask for a turn; it may come at once. Raises InvalidRequest where it could never come."""
        n = self._request.n
        self._ticket.request(n, n * self._kv_tokens, self._begin)
        if not self._ticket.granted:
            self._queued(self._ticket.position)
            self._ticket.on_moved = self._moved

    def _moved(self, position: int) -> None:
        # Not each step of a long queue: that would be an event for everybody whenever anybody's turn comes.
        if position <= self._position // 2 and position != self._position and not self.log.ended:
            self._queued(position)

    def _queued(self, position: int) -> None:
        self._position = position
        self.log.append(Queued(position, self._ticket.estimated_wait(position)))

    @property
    def _kv_tokens(self) -> int:
        return self._owner.engine.info.sequence_kv_tokens(len(self._ids), self._sampling.max_tokens)

    @property
    def _usage(self) -> Usage:
        said = sum(len(choice.ids) for choice in self._choices)
        return Usage(len(self._ids), said, self._cached, self._cache_miss())

    def _cache_miss(self) -> Miss | None:
        turn = self._turn
        if turn is None or not turn.continues or not self._said_first:
            return None
        if turn.seen is None:
            return Miss.EVICTED
        if self._chat is not None and self._chat.miss is not None:
            return self._chat.miss
        # The engine keeps whole blocks, and computes the last sampled token with the next one.
        least = len(turn.seen.ids) - 2 * self._owner.engine.info.prefix_block
        return Miss.EVICTED if self._cached is not None and self._cached < least else None

    def _remember(self, kept: int | None) -> None:
        if self._turn is None or self._chat is None or len(self._choices) != 1:
            return
        said = text_of(self.log.events)[:kept]
        try:
            self._turn.after = self._owner.text.seen(self._chat, self._choices[0].ids, said)
        except Exception:  # It would cost this response its end, and the others of the step theirs.
            logger.exception("what the model has seen of response %s is not remembered", self.log.id)

    def _begin(self) -> None:
        self._owner.metrics.queue_time(time.perf_counter() - self._arrived)
        whole = self._request.n > 1 or not self._request.generate
        if not self._request.generate:
            self._cached = self._owner.engine.cached(self._ids)
        self._reading = self._owner.reader.begin(
            self._ids, whole=whole, on_progress=self._progress, on_ready=self._read
        )
        if self._reading is None:
            self._run()
        else:
            self._progress(self._reading.done)

    def _progress(self, read: int) -> None:
        self.log.append(PrefillProgress(read, len(self._ids)))

    def _read(self, failure: Update | None) -> None:
        self._read_ahead, self._reading = self._reading, None
        if failure is None:
            self._run()
        else:
            self.fail(_error(failure))

    def _run(self) -> None:
        if not self._request.generate:
            self._progress(self._owner.engine.cached(self._ids))
            self._end(Finished((FinishReason.STOP,), self._usage), FinishReason.STOP)
            return
        owner, seed = self._owner, self._sampling.seed
        self.log.append(Started(len(self._ids), self._dropped))
        for index in range(self._request.n):
            sampling = self._sampling if seed is None or not index else replace(self._sampling, seed=seed + index)
            choice = Choice(index, -1, owner.text.detokenizer(), self._request.stop)
            owner.open_sequence(self, choice)
            self._choices.append(choice)
            self._open.add(choice.sequence)
            owner.engine.submit(choice.sequence, self._ids, sampling)

    def update(self, choice: Choice, update: Update, now: float) -> None:
        """Take what one of its sequences gained; nothing is logged before ``flush``."""
        if choice.reason is None and not self.log.ended:
            if update.ended in (None, EndReason.STOP, EndReason.LENGTH):
                self._advance(choice, update, now)
            else:
                if update.ids:
                    self._advance(choice, replace(update, ended=None), now)
                self.flush()
                self.fail(_error(update))
        if update.ended is not None:
            self._close(choice)

    def _advance(self, choice: Choice, update: Update, now: float) -> None:
        metrics = self._owner.metrics
        if update.ids:
            if not self._said_first:
                self._said_first = True
                read, cached = self._read_ahead, update.cached_tokens
                self._cached = cached if read is None else read.cached_before(cached)
                metrics.first_token(now - self._arrived)
            last, choice.last_time = choice.last_time, now
            metrics.tokens(len(update.ids), None if last is None else now - last)
        part = choice.advance(update)
        if part is not None:
            self._parts.append(part)
        if choice.reason is not None and update.ended is None:
            self._owner.engine.cancel(choice.sequence)

    def flush(self) -> None:
        """Log what the step brought, as one event, and the end if it was the last."""
        if self.log.ended:
            return
        if self._parts:
            self.log.append(TextDelta(tuple(self._parts), self.log.acknowledged))
            self._parts = []
        reasons = tuple(choice.reason for choice in self._choices if choice.reason is not None)
        if reasons and len(reasons) == self._request.n:
            self._end(Finished(reasons, self._usage), reasons[0])

    @contextmanager
    def contained(self) -> Iterator[None]:
        """Let what goes wrong with this response be its own end, and no other's."""
        try:
            yield
        except Exception:
            logger.exception("response %s failed inside the service", self.log.id)
            self.fail(EngineError("The server failed while it was writing this answer."))

    def cancel(self, cause: CancelCause) -> None:
        """End it for its readers now; the engine follows within a step."""
        if self.log.ended:
            return
        self.flush()
        if self.log.ended:
            return
        self._owner.metrics.cancelled(cause)
        reason = FinishReason.STEERED if cause is CancelCause.STEERED else FinishReason.CANCELLED
        reasons = tuple(choice.reason or reason for choice in self._choices)
        reasons += (reason,) * (self._request.n - len(reasons))
        self._end(Finished(reasons, self._usage, self.log.acknowledged), reason)

    def fail(self, error: CauserieError) -> None:
        """End it for its readers as failed; whatever still runs of it is cancelled."""
        if not self.log.ended:
            self._owner.metrics.failed(error.code)
            self._end(Failed(error, self._usage, self.log.acknowledged), FinishReason.ERROR)

    def broken(self, error: CauserieError) -> None:
        """Its events cannot be kept any more: stop, and let the log say why."""
        if not self._over:
            self.fail(error)

    def _end(self, terminal: Finished | Failed, reason: FinishReason) -> None:
        self._over = True
        if self._reading is not None:
            self._owner.reader.cancel(self._reading, self._stop_reading)
        for choice in self._choices:
            if choice.sequence in self._open and choice.reason is None:
                self._owner.engine.cancel(choice.sequence)
        usage = terminal.usage
        seconds = time.perf_counter() - self._arrived
        self._owner.metrics.finished(reason, usage.prompt_tokens, usage.completion_tokens, seconds)
        if usage.cache_miss is not None:
            self._owner.metrics.cache_missed(usage.cache_miss)
        self._remember(terminal.kept)
        self.log.append(terminal)
        self._settle()

    def _stop_reading(self) -> None:
        self._reading = None
        self._settle()

    def _close(self, choice: Choice) -> None:
        self._open.discard(choice.sequence)
        if self._open:
            self._ticket.give_back(1, self._kv_tokens)
        self._settle()

    def _settle(self) -> None:
        if self.log.ended and not self._open and self._reading is None:
            self._ticket.release()
            self._owner.settled(self)


def _error(update: Update) -> CauserieError:
    match update.ended:
        case EndReason.OUT_OF_MEMORY:
            return EngineOutOfMemory(
                "The engine ran out of KV-cache memory for this request and ended it unfinished. "
                "Ask for fewer tokens, or give the server a larger cache (kv_cache_gib)."
            )
        case EndReason.CANCELLED:
            return EngineError("The engine was stopped while this answer was being generated.")
        case _:
            return EngineError(update.detail or "The engine failed.")
