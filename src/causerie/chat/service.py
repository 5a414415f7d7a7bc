"""The service: takes requests in, feeds the engine, and turns each of its steps into events of response logs.

Everything here runs on one event loop, except encoding (a small thread pool) and the engine's own thread, whose
steps arrive as one call each.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from causerie.chat.admission import Admission, Ticket
from causerie.chat.ahead import ReadAhead, Spare
from causerie.chat.buffer import OnPrefilled, OpenPrompt, Typing
from causerie.chat.choice import Choice
from causerie.chat.intake import ENCODE_INLINE, Encoded, Intake, characters
from causerie.chat.log import Recorder, ResponseLog
from causerie.chat.metrics import Metrics
from causerie.chat.response import Response, Turn
from causerie.chat.streams import Streams
from causerie.chat.typed import TypedText
from causerie.config import Settings
from causerie.engines.base import Engine, EngineInfo, Update
from causerie.errors import (
    CauserieError,
    DuplicateRequest,
    Overloaded,
    ShuttingDown,
)
from causerie.keys import ANONYMOUS
from causerie.text.model import TextModel
from causerie.text.turns import Seen
from causerie.types import CancelCause, GenerationRequest, SamplingParams, TextPrompt

logger = logging.getLogger("causerie.chat")


class ChatService:
    """One model, ready to answer. Build it with ``causerie.chat.build``; ``start`` loads the weights."""

    def __init__(
        self, engine: Engine, text: TextModel, model_name: str, settings: Settings, *, engine_reason: str
    ) -> None:
        info = engine.info
        self.engine = engine
        self.text = text
        self.model_name = model_name
        self.engine_reason = engine_reason
        """Why it is this engine, for whoever starts the server."""
        self.settings = settings
        self.metrics = Metrics()
        self._numbers = itertools.count(1)
        self._admission = Admission(
            max_sequences=min(settings.max_batch_size, info.max_sequences),
            kv_tokens=info.kv_tokens,
            max_waiting=settings.max_waiting,
        )
        self.streams = Streams(window=settings.resume_window, capacity=settings.max_batch_size + settings.max_waiting)
        """The responses that outlive their readers."""
        self._responses: dict[tuple[str, str], Response | None] = {}
        self._sequences: dict[int, tuple[Response, Choice]] = {}
        self._lingering: dict[ResponseLog, None] = {}
        self._intake = Intake(text, info, settings)
        self._encoders = ThreadPoolExecutor(2, thread_name_prefix="causerie-encode")
        self._ahead = ReadAhead(
            engine, self._intake, self._encoders, settings, next_sequence=self._next_sequence, spare=self._spare
        )
        self.reader = self._ahead.reader
        self._typed = TypedText(settings.max_typed_per_key)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: asyncio.Future[None] | None = None
        self._probe: tuple[int, asyncio.Future[None]] | None = None
        self._started = False
        self._draining = False
        self._ended = False
        self.metrics.watch(
            running=lambda: self._admission.sequences_running,
            waiting=lambda: self._admission.waiting,
            kv_usage=lambda: self.engine.stats().kv_usage,
        )

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    @property
    def ready(self) -> bool:
        """Whether new requests are taken: from the end of ``start`` to ``drain``."""
        return self._started and not self._draining

    @property
    def running(self) -> int:
        """Sequences that hold a permit."""
        return self._admission.sequences_running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._admission.waiting

    @property
    def default_max_tokens(self) -> int:
        """The output limit of a request that names none, in tokens."""
        return min(self.settings.max_tokens, self.settings.max_output_tokens or self.settings.max_tokens)

    async def start(self) -> None:
        """Load the model. Raises ModelUnavailable."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.engine.start, self._deliver)
        self._started = True

    async def stop(self) -> None:
        """End what still runs, then the engine. Safe to call twice, and without ``start``."""
        self._draining = True
        self._admission.close()
        self._ahead.close()
        self._fail_all()
        self.streams.close()
        await asyncio.to_thread(self.engine.stop)
        await asyncio.sleep(0)  # The engine's last delivery is already scheduled on this loop.
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def drain(self, deadline: float) -> None:
        """Take no new requests; let those inside finish for ``deadline`` seconds, then end them as failed."""
        self._draining = True
        self._admission.close()
        if self._responses and deadline > 0:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(deadline):
                    await self._idle
            except TimeoutError:
                pass
            finally:
                self._idle = None
        self._fail_all()

    def resize(self, *, max_sequences: int, kv_tokens: int) -> None:
        """Let so much run from now on, where the engine's size changes; what runs already stays."""
        self._admission.resize(max_sequences=max_sequences, kv_tokens=kv_tokens)

    async def create(
        self, request: GenerationRequest, recorder: Recorder | None = None, turn: Turn | None = None
    ) -> ResponseLog:
        """Take a request in; returns its log as soon as it waits or runs.

        ``recorder`` keeps the log's events. ``turn`` is for one that continues a conversation, or will be continued.

        Raises, in this order: DuplicateRequest, ShuttingDown or Overloaded before anything is computed;
        InvalidRequest, ContextLengthExceeded or UnsupportedParameter after. The caller takes a reader at once,
        and closes it in a ``finally``. What becomes of the response when the last one leaves, ``on_disconnect`` says.
        """
        key = request.owner, request.id
        try:
            ticket = self._enter(request)
        except CauserieError as error:
            self.metrics.rejected(error.code)
            raise
        try:
            arrived = time.perf_counter()
            self._intake.check(request)
            prompt = await self._encode(request, ticket, None if turn is None else turn.seen)
            if self._ended:
                raise ShuttingDown("The server shut down before this request was begun.", retry_after=5)
            sampling = self._intake.fit(request, len(prompt.ids))
            log = ResponseLog(
                request.id,
                owner=request.owner,
                on_cancel=lambda cause: response.cancel(cause),
                on_abandoned=self._abandoned,
                on_broken=lambda error: response.broken(error),
                recorder=recorder,
                outlives_readers=request.on_disconnect.grace != 0,
            )
            response = Response(self, request, log, ticket, prompt, sampling, arrived, turn)
            self._responses[key] = response
            if log.outlives_readers:
                self.streams.keep(log, request)
            try:
                response.enqueue()
            except BaseException:
                self.streams.forget(log.owner, log.id)
                raise
        except BaseException as error:
            # An encoding thread that is still at work keeps its place until it is done; see _encode.
            if not isinstance(error, asyncio.CancelledError):
                ticket.release()
            self._forget(key)
            if isinstance(error, CauserieError):
                self.metrics.rejected(error.code)
            raise
        self.metrics.submitted()
        return log

    def typing(
        self,
        prompt: OpenPrompt,
        *,
        owner: str = ANONYMOUS,
        beside: int = 0,
        limit: int | None = None,
        on_prefilled: OnPrefilled | None = None,
    ) -> Typing:
        """A buffer for a prompt that is still being written, which the engine reads ahead when it can.

        ``prompt`` is what there is of it already: the conversation with the message that is being written as its
        last, or plain text. ``limit`` bounds its characters (default: ``max_typed_characters``); they count for the
        ``owner``, and so do ``beside`` more, which came with it. ``on_prefilled`` is told of the reading's progress.
        Nothing is admitted: the committed prompt is for ``create``. Raises TypedTextLimit.
        """
        limit = self.settings.max_typed_characters if limit is None else limit
        share = self._typed.share(owner)
        return Typing(self._ahead, prompt, limit=limit, share=share, beside=beside, on_prefilled=on_prefilled)

    async def check_decode(self, timeout: float) -> bool:
        """Whether the engine decodes within ``timeout`` seconds: for anybody, or a fixed prompt past the queue."""
        if not self._started or self._loop is None:
            return False
        if self._probe is None:
            number = self._next_sequence()
            self._probe = (number, self._loop.create_future())
            ids = self.text.encode(TextPrompt("a"))
            self.engine.submit(number, ids, SamplingParams(max_tokens=1, temperature=0.0))
        elif self._probe[1].done():  # By another's token, while its own still waits.
            self._probe = (self._probe[0], self._loop.create_future())
        done, _ = await asyncio.wait([self._probe[1]], timeout=timeout)
        return bool(done)

    def open_sequence(self, response: Response, choice: Choice) -> None:
        """Give a choice its number, under which the engine's updates find it."""
        choice.sequence = self._next_sequence()
        self._sequences[choice.sequence] = (response, choice)

    def settled(self, response: Response) -> None:
        """Forget a response that is over for the engine; its log lives on with its readers."""
        log = response.log
        key = log.owner, log.id
        if self._responses.get(key) is response:
            self._forget(key)
        self.streams.ended(log)
        if log.reader_count:
            self._lingering[log] = None

    def _next_sequence(self) -> int:
        return next(self._numbers)

    def _enter(self, request: GenerationRequest) -> Ticket:
        key = request.owner, request.id
        if key in self._responses:
            raise DuplicateRequest(f"A request with the id {request.id!r} is still running.", param="request_id")
        if request.on_disconnect.grace != 0 and self.streams.has(*key):
            raise DuplicateRequest(
                f"The stream {request.id!r} has ended, but can still be read again. Choose another id.",
                param="request_id",
            )
        if not self.ready:
            raise ShuttingDown("The server is not ready, or is shutting down.", retry_after=5)
        limit = self.settings.max_batch_size + self.settings.max_waiting
        if len(self._lingering) >= limit:
            raise Overloaded(f"{limit} finished answers are still being read. Try again later.")
        ticket = self._admission.enter()
        self._responses[key] = None
        return ticket

    def _spare(self) -> Spare | None:
        """What reading ahead may take: nothing while anybody waits for a turn or for a first token."""
        waits = self._admission.waiting or any(choice.last_time is None for _, choice in self._sequences.values())
        if waits or not self.ready:
            return None
        return Spare(self._admission.kv_tokens - self._admission.kv_tokens_reserved, alone=not self._sequences)

    def _forget(self, key: tuple[str, str]) -> None:
        self._responses.pop(key, None)
        self._ahead.go_on()
        if self._idle is not None and not self._responses and not self._idle.done():
            self._idle.set_result(None)

    def _abandoned(self, log: ResponseLog) -> None:
        self._lingering.pop(log, None)
        if not self.streams.abandoned(log):
            log.cancel(CancelCause.CLIENT)

    def _fail_all(self) -> None:
        self._ended = True
        for response in list(self._responses.values()):
            if response is not None:
                response.fail(ShuttingDown("The server shut down before this answer was finished.", retry_after=5))

    async def _encode(self, request: GenerationRequest, ticket: Ticket, seen: Seen | None) -> Encoded:
        if characters(request.prompt) < ENCODE_INLINE:
            return self._intake.encode(request, seen)
        future = asyncio.get_running_loop().run_in_executor(self._encoders, self._intake.encode, request, seen)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread cannot be stopped; releasing the place before would let a hasty client pile threads up.
            future.add_done_callback(lambda done: self._release_after(done, ticket))
            raise

    def _deliver(self, updates: Sequence[Update]) -> None:
        """On the engine's thread: hand a whole step to the loop."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._on_step, updates)
        except RuntimeError:
            logger.debug("a step came after the event loop had closed")

    def _on_step(self, updates: Sequence[Update]) -> None:
        now = time.perf_counter()
        touched: dict[Response, None] = {}
        for update in updates:
            if self._probe is not None and update.ids and not self._probe[1].done():
                self._probe[1].set_result(None)
            found = self._sequences.get(update.sequence)
            if found is None:
                self._on_other(update)
                continue
            response, choice = found
            if update.ended is not None:
                del self._sequences[update.sequence]
            with response.contained():
                response.update(choice, update, now)
            touched[response] = None
        for response in touched:
            with response.contained():
                response.flush()
        self._ahead.go_on()

    def _on_other(self, update: Update) -> None:
        if self._probe is not None and self._probe[0] == update.sequence:
            if update.ended is not None:
                self._probe = None
        else:
            self.reader.update(update)

    def _release_after(self, encoding: asyncio.Future[Encoded], ticket: Ticket) -> None:
        ticket.release()
        self._ahead.go_on()
        if not encoding.cancelled():
            encoding.exception()  # Looked at, so that asyncio does not complain: nobody waits for it any more.
