"""The pool of engines as one ``Engine``: a call of Ray Serve for each sequence, to the replica that suits it.

What the sequences gain does not come with those calls but through one channel for each replica, a list per step. The
calls are there so that Ray counts, drains and cancels sequences as what they are.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace

from grpc.aio import AioRpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from causerie.engines.base import Deliver, EndReason, EngineInfo, EngineStats, Update
from causerie.ray.placement import Placement, whole
from causerie.ray.pool import Pool, Stream
from causerie.ray.replica import Gain
from causerie.types import SamplingParams

logger = logging.getLogger("causerie.ray")

TRIES = 3
"""How often a sequence that has not begun is given to another engine, when the one it was given to is gone."""

OPEN_SECONDS = 5.0
"""How long a channel may take to open: a replica that was taken away meanwhile is never reached."""

_LOST = "The engine that was generating this answer is gone, and what it had not said yet is lost. Try again."
_FAILED = "The engine failed on this request."
_NONE = "No engine could be reached. Try again."


class _Lost(Exception):
    """A channel is, and what was in it."""


@dataclass(slots=True)
class _Sequence:
    """``key`` is the engines' name for it, a new one at each try, so that nothing of an earlier one is taken for it."""

    number: int
    prompt: Sequence[int]
    ids: list[int]
    over: asyncio.Future[bool]
    """Whether its end has come, or its channel is lost."""
    key: int = 0
    channel: int = 0
    place: str = ""
    """The replica at which it counts as running, until it has ended."""
    replica: str = ""
    """The one that has it, once that is known."""
    stream: Stream[str] | None = None


class PooledEngine:
    """An ``Engine`` over a pool of up to ``most`` replicas, each as ``one``; ``info`` describes the pool as a whole.

    It delivers on the event loop from which ``submit`` is called. What a replica has cached is guessed from what it
    was given, and a prompt goes where most of its beginning is, if there is room (``Placement``). A replica that dies
    ends the sequences that had begun as ERROR; those that had not are given to another.
    """

    def __init__(self, pool: Pool, one: EngineInfo, most: int) -> None:
        # The pieces of a long prompt are read beside the engine, which knows what it has cached.
        self.info = replace(whole(one, most), takes_turns=True)
        self._pool = pool
        self._placement = Placement(one)
        self._readings: dict[int, asyncio.Task[int | None]] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._by_key: dict[int, _Sequence] = {}
        self._keys = itertools.count(1)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._channels: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._channel = 1
        """The number of new sequences' channels: another one after each loss, for what was lost may still be read."""
        self._deliver: Deliver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def is_there(self, running: Iterable[str]) -> None:
        """These replicas run now, and no others. Until this is called, the router chooses."""
        self._placement.is_there(running)

    def start(self, deliver: Deliver) -> None:
        """The replicas load their models themselves; nothing is waited for."""
        self._deliver = deliver

    def submit(self, sequence: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self._loop = asyncio.get_running_loop()
        ours = self._sequences[sequence] = _Sequence(sequence, prompt, list(prompt), self._loop.create_future())
        # In a context of its own: in the caller's, all its sequences would carry the same id of Ray Serve's, whose
        # router knows a waiting request by that alone and would forget all but the last.
        task = self._loop.create_task(self._run(ours, sampling), context=Context())
        # Not at the end of the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(lambda done: self._end(ours, done))
        self._tasks[sequence] = task

    def prefill(self, sequence: int, prompt: Sequence[int], *, gently: bool = False) -> None:
        """At the replica that has read most of it, when nothing there waits."""
        self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(self._read(prompt, gently), context=Context())
        task.add_done_callback(lambda done: self._end_reading(sequence, done))
        self._readings[sequence] = task

    def cached(self, prompt: Sequence[int]) -> int:
        return self._placement.known(prompt)

    def cancel(self, sequence: int) -> None:
        if sequence in self._sequences:
            self._tasks[sequence].cancel()
        elif sequence in self._readings:
            self._readings[sequence].cancel()

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._sequences), kv_usage=math.nan)

    def stop(self) -> None:
        """See ``Engine.stop``; not from the event loop's own thread."""
        if self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()

    async def _cancel_all(self) -> None:
        tasks = [*self._tasks.values(), *self._readings.values(), *self._channels.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _run(self, sequence: _Sequence, sampling: SamplingParams) -> None:
        """See that some replica runs it to its end; where none does, the end is said here."""
        for _ in range(TRIES):
            try:
                await self._follow(sequence, sampling)
                return
            except RayTaskError:
                raise  # A fault of the replica's own code, which every other has as well.
            except (RayError, RayServeException, AioRpcError, _Lost, asyncio.CancelledError) as error:
                if _is_ours(error):
                    raise
                if sequence.number not in self._sequences:
                    return
                logger.warning("an engine was lost: %s", type(error).__name__)
                self._placement.lost(sequence.place)
                if len(sequence.ids) > len(sequence.prompt):
                    self._finish(sequence, Update(sequence.number, ended=EndReason.ERROR, detail=_LOST))
                    return
        self._finish(sequence, Update(sequence.number, ended=EndReason.ERROR, detail=_NONE))

    def _end(self, sequence: _Sequence, done: asyncio.Task[None]) -> None:
        """Its task has ended, whether or not the sequence has."""
        del self._tasks[sequence.number]
        error = None if done.cancelled() else done.exception()
        if sequence.number not in self._sequences:
            return
        if error is not None:
            logger.error("a call of an engine failed", exc_info=error)
        end = EndReason.ERROR if error is not None else EndReason.CANCELLED
        self._finish(sequence, Update(sequence.number, ended=end, detail=_FAILED if error is not None else ""))

    async def _follow(self, sequence: _Sequence, sampling: SamplingParams) -> None:
        """Until a replica has said everything. Raises what Ray raises, and _Lost with the replica's channel."""
        sequence.key = next(self._keys)
        sequence.channel = self._channel
        sequence.replica = ""
        sequence.over = asyncio.get_running_loop().create_future()
        self._by_key[sequence.key] = sequence
        self._move(sequence, self._placement.choose(sequence.prompt))
        stream = sequence.stream = self._pool.generate(
            sequence.place, sequence.channel, sequence.key, sequence.prompt, sampling
        )
        ended = False
        try:
            # To the stream's own end, which is when Ray's router counts it as over.
            async for replica in stream:
                self._is_at(sequence, replica)
                self._listen(replica, sequence.channel)
            ended = True
            if not await sequence.over:
                raise _Lost
        finally:
            self._by_key.pop(sequence.key, None)
            if not ended:
                stream.cancel()

    def _listen(self, replica: str, channel: int) -> None:
        if (replica, channel) not in self._channels:
            assert self._loop is not None
            task = self._loop.create_task(self._take(replica, channel), context=Context())
            self._channels[replica, channel] = task

    async def _take(self, replica: str, channel: int) -> None:
        """Deliver what a replica says, as long as something of ours runs there."""
        try:
            while self._at(replica, channel):
                stream = self._pool.gains(replica, channel)
                try:
                    async with asyncio.timeout(OPEN_SECONDS) as opening:
                        async for gains in stream:
                            opening.reschedule(None)
                            self._on_gains(replica, gains)
                finally:
                    stream.cancel()
        except (RayError, RayServeException, AioRpcError, TimeoutError, asyncio.CancelledError) as error:
            if _is_ours(error):
                raise
            logger.warning("an engine's channel was lost: %s", type(error).__name__)
            self._channel += 1
        finally:
            del self._channels[replica, channel]
            for sequence in self._at(replica, channel):
                # What was in the channel is missing, though the engine may still be there.
                sequence.over.set_result(False)
                if sequence.stream is not None:
                    sequence.stream.cancel()

    def _at(self, replica: str, channel: int) -> list[_Sequence]:
        """Those that wait for something from there."""
        place = (replica, channel)
        return [one for one in self._by_key.values() if (one.replica, one.channel) == place and not one.over.done()]

    def _on_gains(self, replica: str, gains: Sequence[Gain]) -> None:
        """Deliver a step, in one piece."""
        updates: list[Update] = []
        for gain in gains:
            sequence = self._by_key.get(gain.key)
            if sequence is None or sequence.over.done() or sequence.number not in self._sequences:
                continue  # It was cancelled, or is tried elsewhere.
            self._is_at(sequence, replica)
            sequence.ids += gain.ids
            update = Update(sequence.number, *gain[1:])
            updates.append(update)
            if update.ended is not None:
                sequence.over.set_result(True)
                self._forget(sequence, update)
        if updates:
            self._say(*updates)

    def _finish(self, sequence: _Sequence, end: Update) -> None:
        self._forget(sequence, end)
        self._say(end)

    def _forget(self, sequence: _Sequence, end: Update) -> None:
        del self._sequences[sequence.number]
        self._move(sequence, "")
        if end.ended is not EndReason.ERROR:
            self._placement.has_read(sequence.replica, sequence.ids[:-1])

    def _say(self, *updates: Update) -> None:
        assert self._deliver is not None
        self._deliver(updates)

    def _is_at(self, sequence: _Sequence, replica: str) -> None:
        if not sequence.replica and sequence.number in self._sequences:
            self._placement.answered(replica)
            self._move(sequence, replica)
        sequence.replica = replica

    def _move(self, sequence: _Sequence, place: str) -> None:
        """It counts as running there, and nowhere else."""
        if sequence.place:
            self._placement.leave(sequence.place)
        sequence.place = place
        if place:
            self._placement.take(place)

    async def _read(self, prompt: Sequence[int], gently: bool) -> int | None:
        """See that some replica reads it. Returns how much of it was cached there; raises what Ray raises."""
        call = self._pool.prefill(self._placement.choose(prompt, least=1), prompt, gently=gently)
        try:
            replica, cached = await anext(aiter(call))
        finally:
            call.cancel()
        self._placement.has_read(replica, prompt)
        return cached

    def _end_reading(self, number: int, done: asyncio.Task[int | None]) -> None:
        """What could not be read ahead is read with the prompt itself."""
        del self._readings[number]
        if done.cancelled():
            self._say(Update(number, ended=EndReason.CANCELLED))
        elif (error := done.exception()) is not None:
            logger.warning("an engine could not read ahead: %s", type(error).__name__)
            self._say(Update(number, ended=EndReason.ERROR, detail=_FAILED))
        else:
            self._say(Update(number, ended=EndReason.PREFILLED, cached_tokens=done.result()))


def _is_ours(error: BaseException) -> bool:
    """Whether this task was cancelled. Ray raises the same where a replica is ended that had the stream."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
