"""The pool of engines as one ``Engine``: a call of Ray Serve for each sequence, to the replica that suits it.

What the sequences gain does not come with those calls but through one channel for each replica, a list per step. The
calls are there so that Ray counts, drains and cancels sequences as what they are.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, replace

from grpc.aio import AioRpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from causerie.engines.base import Deliver, EndReason, EngineInfo, EngineStats, Update
from causerie.ray.known import KnownPrefixes
from causerie.ray.pool import Pool, Stream
from causerie.ray.replica import Gain
from causerie.types import SamplingParams

logger = logging.getLogger("causerie.ray")

TRIES = 3
"""How often a sequence that has not begun is given to another engine, when the one it was given to is gone."""

OPEN_SECONDS = 5.0
"""How long a channel may take to open: a replica that was taken away meanwhile is never reached."""

MOST_KNOWN = 256
"""Replicas whose caches are remembered; those that are long gone are forgotten first."""

LEAST_SHARE, LEAST_TOKENS = 0.1, 128
"""How much of a prompt an engine has to have read for the prompt to be sent there: less is read again in no time."""

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
    replica: str = ""
    stream: Stream[str] | None = None


class PooledEngine:
    """An ``Engine`` over every replica of a pool; ``info`` describes the pool as a whole.

    It delivers on the event loop from which ``submit`` is called. What a replica has cached is guessed from what it
    was given, and a prompt goes where most of its beginning is, if the router finds room there. A replica that dies
    ends the sequences that had begun as ERROR; those that had not are given to another.
    """

    def __init__(self, pool: Pool, info: EngineInfo, *, replica_kv_tokens: int) -> None:
        # The pieces of a long prompt are read beside the engine, which knows what it has cached.
        self.info = replace(info, prefix_block=0)
        self._pool = pool
        self._block = info.prefix_block
        self._cache_blocks = replica_kv_tokens // max(1, self._block)
        self._known: dict[str, KnownPrefixes] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._by_key: dict[int, _Sequence] = {}
        self._keys = itertools.count(1)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._channels: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._channel = 1
        """The number of new sequences' channels: another one after each loss, for what was lost may still be read."""
        self._deliver: Deliver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

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

    def prefill(self, sequence: int, prompt: Sequence[int]) -> None:
        """Done at once: a pool keeps nothing of its own (``prefix_block`` is 0), so there is nothing to read ahead."""
        self._say(Update(sequence, ended=EndReason.PREFILLED))

    def cached(self, prompt: Sequence[int]) -> int:
        return max((known.known(prompt) for known in self._known.values()), default=0)

    def cancel(self, sequence: int) -> None:
        if sequence in self._sequences:
            self._tasks[sequence].cancel()

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._sequences), kv_usage=math.nan)

    def stop(self) -> None:
        """See ``Engine.stop``; not from the event loop's own thread."""
        if self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()

    async def _cancel_all(self) -> None:
        tasks = [*self._tasks.values(), *self._channels.values()]
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
                self._known.pop(sequence.replica, None)
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
        preferred = self._preferred(sequence.prompt)
        stream = sequence.stream = self._pool.generate(
            preferred, sequence.channel, sequence.key, sequence.prompt, sampling
        )
        ended = False
        try:
            # To the stream's own end, which is when Ray's router counts it as over.
            async for replica in stream:
                sequence.replica = replica
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
            sequence.replica = replica
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
        if end.ended is not EndReason.ERROR:
            self._remember(sequence)

    def _say(self, *updates: Update) -> None:
        assert self._deliver is not None
        self._deliver(updates)

    def _preferred(self, prompt: Sequence[int]) -> str:
        """The replica that has read most of ``prompt``, the latest of several; none where that is little.

        Whether it has room, and is still there, is the router's to say (``causerie.ray.routing``).
        """
        known = {replica: self._known[replica].known(prompt) for replica in reversed(self._known)}
        best = max(known, key=lambda replica: known[replica], default="")
        return best if best and known[best] >= max(LEAST_TOKENS, LEAST_SHARE * len(prompt)) else ""

    def _remember(self, sequence: _Sequence) -> None:
        if self._block and sequence.replica:
            fresh = KnownPrefixes(self._block, self._cache_blocks)
            known = self._known[sequence.replica] = self._known.pop(sequence.replica, fresh)
            known.read(sequence.ids[:-1])
            if len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]


def _is_ours(error: BaseException) -> bool:
    """Whether this task was cancelled. Ray raises the same where a replica is ended that had the stream."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
