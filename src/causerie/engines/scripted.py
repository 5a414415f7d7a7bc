"""A deterministic engine without a model: for tests, and for people who build interfaces.

It computes nothing: a *script* says what is answered to a prompt, and the pace is a setting. Its vocabulary is
the byte values 0 to 255 and three control tokens (``TextModel.bytes`` is the matching text side). Since a script leaves
one possible token at each place, sampling parameters that reshape a distribution hold trivially.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from causerie.engines.base import EndReason, EngineInfo, EngineStats, Update
from causerie.engines.stepping import Cancel, Command, SteppingEngine, Submit
from causerie.types import SamplingParams, TokenLogprob

IM_START = 256
IM_END = 257
END_OF_TEXT = 258
VOCABULARY = 259

_HONOURED = frozenset(SamplingParams.__dataclass_fields__) - {"json_schema"}
"""What the script says is not sampled, so any way of sampling is honoured; a schema would not be."""

Script: TypeAlias = Callable[[Sequence[int]], Iterable[int]]
"""Prompt ids to answer ids. It may raise OutOfBlocks, or anything else, to play an engine that fails."""


class OutOfBlocks(Exception):
    """Raised by a script: the KV cache has no block left for this sequence."""


def echo(prompt: Sequence[int]) -> Iterable[int]:
    """The script for interfaces: says the user's last turn back, in a sentence."""
    text = bytes(id_ for id_ in _last_turn(list(prompt)) if id_ < 256)
    return b"You said: " + text.strip() + b". This is the scripted engine; it answers every turn this way."


def _last_turn(prompt: list[int]) -> list[int]:
    starts = [index for index, id_ in enumerate(prompt) if id_ == IM_START]
    header = list(b"user\n")
    for start in reversed(starts):
        if prompt[start + 1 : start + 1 + len(header)] == header:
            body = prompt[start + 1 + len(header) :]
            return body[: body.index(IM_END)] if IM_END in body else body
    return prompt


@dataclass(slots=True)
class _Sequence:
    prompt: Sequence[int]
    sampling: SamplingParams | None
    script: Iterator[int] = field(default_factory=lambda: iter(()))
    unread: int = 0
    cached: int | None = None
    gently: bool = False
    ids: list[int] = field(default_factory=list)
    """What was said."""


class ScriptedEngine(SteppingEngine):
    """Answers by a script, ``ids_per_step`` ids of each sequence in steps of ``step_seconds``.

    ``permits``, if given, is acquired before each step, so that a test decides when one happens.
    ``prefill_per_step`` is how many prompt tokens a step reads of each sequence (None: all at once).
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        step_seconds: float = 0.0,
        ids_per_step: int = 1,
        prefill_per_step: int | None = None,
        permits: threading.Semaphore | None = None,
        context_window: int = 8192,
        kv_tokens: int = 1_000_000,
        max_sequences: int = 256,
        prefix_block: int = 32,
        parameters: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        self._script = script
        self._step_seconds = step_seconds
        self._ids_per_step = ids_per_step
        self._prefill_per_step = prefill_per_step
        self._permits = permits
        self._sequences: dict[int, _Sequence] = {}
        self._prefixes: set[tuple[int, ...]] = set()
        self._pace = threading.Event()
        self._info = EngineInfo(
            name="scripted",
            context_window=context_window,
            kv_tokens=kv_tokens,
            max_sequences=max_sequences,
            parameters=_HONOURED if parameters is None else parameters,
            prefix_block=prefix_block,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def stats(self) -> EngineStats:
        used = sum(len(sequence.prompt) + len(sequence.ids) for sequence in list(self._sequences.values()))
        return EngineStats(len(self._sequences), min(1.0, used / self._info.kv_tokens), self._steps)

    def cached(self, prompt: Sequence[int]) -> int:
        block = self._info.prefix_block
        if not block:
            return 0
        whole = (len(prompt) - 1) // block * block
        return next((end for end in range(whole, 0, -block) if tuple(prompt[:end]) in self._prefixes), 0)

    def stop(self) -> None:
        self._pace.set()
        if self._permits is not None:
            with self._condition:
                self._stopping = True
            self._permits.release()
        super().stop()

    def _open(self) -> None:
        self._prefixes.clear()

    def _busy(self) -> bool:
        return bool(self._sequences)

    def _apply(self, command: Command) -> Iterable[Update]:
        match command:
            case Submit(number, prompt, sampling, gently):
                cached = self.cached(prompt)
                self._sequences[number] = _Sequence(
                    prompt, sampling, self._answer(prompt, sampling), len(prompt) - cached, cached, gently
                )
            case Cancel(number):
                if self._sequences.pop(number, None) is not None:
                    yield Update(number, ended=EndReason.CANCELLED)

    def _answer(self, prompt: Sequence[int], sampling: SamplingParams | None) -> Iterator[int]:
        """The script's ids with its end-of-text; told again and again for whoever must not stop yet."""
        if sampling is None:
            return
        said = 0
        while True:
            before = said
            for id_ in self._script(prompt):
                yield id_
                said += 1
            if said == before and said < sampling.min_tokens:
                yield ord(".")
                said += 1
            if said >= sampling.min_tokens or sampling.ignore_eos:
                yield IM_END
                said += 1

    def _remember(self, prompt: Sequence[int]) -> None:
        block = self._info.prefix_block
        if block:
            if len(self._prefixes) * block >= self._info.kv_tokens:
                self._prefixes.clear()
            self._prefixes.update(tuple(prompt[:end]) for end in range(block, len(prompt) + 1, block))

    def _abandon(self) -> list[int]:
        numbers = list(self._sequences)
        self._sequences.clear()
        return numbers

    def _step(self, updates: list[Update]) -> None:
        if self._permits is not None:
            self._permits.acquire()
        if self._step_seconds:
            self._pace.wait(self._step_seconds)
        for number in list(self._sequences):
            update = self._step_one(number)
            if update is not None:
                updates.append(update)
                if update.ended is not None:
                    del self._sequences[number]

    def _generates(self) -> bool:
        return any(sequence.sampling is not None for sequence in self._sequences.values())

    def _step_one(self, number: int) -> Update | None:
        sequence = self._sequences[number]
        if sequence.unread:
            most = 1 if sequence.gently and self._generates() else self._prefill_per_step
            sequence.unread -= min(sequence.unread, most or sequence.unread)
            if sequence.unread:
                return None
            self._remember(sequence.prompt)
        if sequence.sampling is None:
            return Update(number, ended=EndReason.PREFILLED, cached_tokens=sequence.cached)
        cached = sequence.cached if not sequence.ids else None
        try:
            ids = list(itertools.islice(sequence.script, self._ids_per_step))
        except OutOfBlocks:
            return Update(number, ended=EndReason.OUT_OF_MEMORY)
        except Exception as error:
            return Update(number, ended=EndReason.ERROR, detail=f"The script failed: {type(error).__name__}.")
        ids, ended = _limit(ids, len(sequence.ids), sequence.sampling)
        sequence.ids += ids
        if ended is not None:
            self._remember([*sequence.prompt, *sequence.ids[:-1]])  # The last one was not computed with any more.
        logprobs = [TokenLogprob(id_, 0.0) for id_ in ids] if sequence.sampling.logprobs is not None else ()
        return Update(number, ids, logprobs, ended, cached_tokens=cached)


def _limit(ids: list[int], said: int, sampling: SamplingParams) -> tuple[list[int], EndReason | None]:
    """``ids`` up to the first that ends the sequence, and why it ends there, if it does."""
    stops = sampling.stop_token_ids if sampling.ignore_eos else sampling.stop_token_ids | {IM_END, END_OF_TEXT}
    for index, id_ in enumerate(ids, start=1):
        if id_ in stops and said + index > sampling.min_tokens:
            return ids[:index], EndReason.STOP
        if said + index >= sampling.max_tokens:
            return ids[:index], EndReason.LENGTH
    return ids, None
