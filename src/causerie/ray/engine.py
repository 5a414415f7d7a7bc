"""The pool of engines as one ``Engine``: a stream of Ray Serve for each sequence, to the replica that suits it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from causerie.engines.base import Deliver, EndReason, EngineInfo, EngineStats, Update
from causerie.ray.known import KnownPrefixes
from causerie.types import SamplingParams

logger = logging.getLogger("causerie.ray")

TRIES = 3
"""How often a sequence that has not begun is given to another engine, when the one it was given to is gone."""

MOST_KNOWN = 256
"""Replicas whose caches are remembered; those that are long gone are forgotten first."""

LEAST_SHARE, LEAST_TOKENS = 0.1, 128
"""How much of a prompt an engine has to have read for the prompt to be sent there: less is read again in no time."""

_LOST = "The engine that was generating this answer is gone, and what it had not said yet is lost. Try again."
_NONE = "No engine could be reached. Try again."


@dataclass(frozen=True, slots=True)
class Begun:
    """The first thing that a stream says: which replica it comes from."""

    replica: str


class Stream(Protocol):
    """What Ray Serve returns for a streaming call."""

    def __aiter__(self) -> AsyncIterator[Begun | list[Update]]: ...

    def cancel(self) -> None: ...


class Pool(Protocol):
    """How to reach the engines: a stream of one sequence, at the replica named if it has room."""

    def generate(self, preferred: str, prompt: Sequence[int], sampling: SamplingParams) -> Stream: ...


@dataclass(slots=True)
class _Sequence:
    prompt: Sequence[int]
    ids: list[int]
    replica: str = ""


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
        self._tasks: dict[int, asyncio.Task[Update]] = {}
        self._deliver: Deliver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, deliver: Deliver) -> None:
        """The replicas load their models themselves; nothing is waited for."""
        self._deliver = deliver

    def submit(self, sequence: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self._loop = asyncio.get_running_loop()
        self._sequences[sequence] = _Sequence(prompt, list(prompt))
        # In a context of its own: in the caller's, all its sequences would carry the same id of Ray Serve's, whose
        # router knows a waiting request by that alone and would forget all but the last.
        task = self._loop.create_task(self._run(sequence, sampling), context=Context())
        # Not at the end of the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(lambda done: self._end(sequence, done))
        self._tasks[sequence] = task

    def prefill(self, sequence: int, prompt: Sequence[int]) -> None:
        """Done at once: a pool keeps nothing of its own (``prefix_block`` is 0), so there is nothing to read ahead."""
        self._say(Update(sequence, ended=EndReason.PREFILLED))

    def cached(self, prompt: Sequence[int]) -> int:
        return max((known.known(prompt) for known in self._known.values()), default=0)

    def cancel(self, sequence: int) -> None:
        task = self._tasks.get(sequence)
        if task is not None:
            task.cancel()

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._sequences), kv_usage=math.nan)

    def stop(self) -> None:
        """See ``Engine.stop``; not from the event loop's own thread."""
        if self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()

    async def _cancel_all(self) -> None:
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _run(self, number: int, sampling: SamplingParams) -> Update:
        """Follow one replica, or the next while nothing was said; the update that ends the sequence."""
        sequence = self._sequences[number]
        for _ in range(TRIES):
            try:
                return await self._follow(number, sequence, sampling)
            except (RayError, RayServeException, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise  # Ours. Ray raises the same where a replica is ended that had the stream.
                logger.warning("an engine was lost: %s", type(error).__name__)
                self._known.pop(sequence.replica, None)
                if len(sequence.ids) > len(sequence.prompt):
                    return Update(number, ended=EndReason.ERROR, detail=_LOST)
        return Update(number, ended=EndReason.ERROR, detail=_NONE)

    def _end(self, number: int, done: asyncio.Task[Update]) -> None:
        sequence = self._sequences.pop(number)
        del self._tasks[number]
        if done.cancelled():
            end = Update(number, ended=EndReason.CANCELLED)
        elif (error := done.exception()) is not None:
            logger.error("a stream of an engine failed", exc_info=error)
            end = Update(number, ended=EndReason.ERROR, detail=_LOST)
        else:
            end = done.result()
        if end.ended is not EndReason.ERROR:
            self._remember(sequence)
        self._say(end)

    async def _follow(self, number: int, sequence: _Sequence, sampling: SamplingParams) -> Update:
        """Deliver what a replica says; its last update is returned, not delivered. Raises what Ray raises."""
        stream = self._pool.generate(self._preferred(sequence.prompt), sequence.prompt, sampling)
        end: Update | None = None
        try:
            # To the stream's own end, which is when Ray's router counts it as over.
            async for said in stream:
                if isinstance(said, Begun):
                    sequence.replica = said.replica
                    continue
                for update in said:
                    ours = replace(update, sequence=number)
                    sequence.ids += ours.ids
                    if ours.ended is not None:
                        end = ours
                    else:
                        self._say(ours)
        finally:
            if end is None:
                stream.cancel()
        if end is None:
            raise RayServeException("the stream ended before its sequence did")
        return end

    def _say(self, update: Update) -> None:
        assert self._deliver is not None
        self._deliver([update])

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


def pool_of(handle: Any, caller: str) -> Pool:
    """A Ray Serve handle of the engine deployment as a ``Pool``; ``caller`` is this process's name among actors."""
    return _HandlePool(handle, caller)


class _HandlePool:
    def __init__(self, handle: Any, caller: str) -> None:
        self._handle = handle.options(stream=True)
        self._caller = caller

    def generate(self, preferred: str, prompt: Sequence[int], sampling: SamplingParams) -> Stream:
        stream: Stream = self._handle.options(session_id=preferred).generate.remote(
            self._caller, list(prompt), sampling
        )
        return stream
