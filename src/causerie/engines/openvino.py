"""OpenVINO GenAI's continuous batching as an engine: paged KV cache, prefix caching, all sequences in each step.

What was read and tried of the runtime stands in ``docs/log.md``. What matters here: it enforces neither a context
window nor ``max_num_seqs`` (the service does), it says IGNORED where it ran out of blocks (a failure, not
a finish), it does not say how many prompt tokens it reused, and it samples every request that names no seed
from the same seed.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from openvino_genai import py_openvino_genai

from causerie.engines.base import EndReason, EngineInfo, EngineStats, Update
from causerie.engines.openvino_cache import CacheMirror
from causerie.engines.stepping import Cancel, Command, SteppingEngine, Submit
from causerie.errors import ModelUnavailable
from causerie.types import SamplingParams, TokenLogprob

_Status = py_openvino_genai.GenerationStatus
_Finish = py_openvino_genai.GenerationFinishReason

BLOCK = 32
"""Tokens in a block of the paged KV cache on CPU."""

_HONOURED = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
        "logprobs",
    }
)

_ELEMENT_BYTES = {"u8": 1.125, "f16": 2, "bf16": 2, "f32": 4}
"""Bytes that one element of the KV cache takes; u8 keeps a scale and a zero point beside each row of 64."""


@dataclass(slots=True)
class _Sequence:
    handle: Any
    only_read: bool
    logprobs: bool
    ids: list[int]
    """The prompt and what was generated after it."""
    said: int = 0
    cancelled: bool = False

    @property
    def computed(self) -> list[int]:
        """The ids whose keys and values are in the cache: a sampled token's are computed with the next one."""
        return self.ids[:-1] if self.said else self.ids


class OpenVINOEngine(SteppingEngine):
    """Runs an OpenVINO IR folder on the CPU.

    ``kv_cache_bytes`` bounds the KV cache, ``kv_bytes_per_token`` is what a token takes at two bytes per element,
    ``properties`` are the runtime's (they must name KV_CACHE_PRECISION, so that the cache's size is known).
    ``prompt_tokens_per_step`` is how many new prompt tokens a step reads beside its running sequences; a longer
    prompt has a step for itself. It is never split over two: the runtime registers a prompt's blocks in its prefix
    cache as whole before they are, and would hand one out half filled if the request were cancelled then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context_window: int,
        eos_token_ids: frozenset[int],
        kv_bytes_per_token: int,
        kv_cache_bytes: int,
        max_sequences: int,
        prompt_tokens_per_step: int,
        properties: dict[str, str],
    ) -> None:
        super().__init__()
        self._folder = folder
        self._eos = eos_token_ids
        self._properties = properties
        self._prompt_tokens_per_step = prompt_tokens_per_step
        per_token = kv_bytes_per_token / 2 * _ELEMENT_BYTES[properties["KV_CACHE_PRECISION"]]
        blocks = max(1, int(kv_cache_bytes / per_token / BLOCK))
        self._blocks = blocks
        self._sequences: dict[int, _Sequence] = {}
        self._arrivals: deque[Submit] = deque()
        self._cache = CacheMirror(BLOCK, blocks)
        self._pipeline: Any = None
        self._kv_usage = 0.0
        self._info = EngineInfo(
            name="openvino",
            context_window=context_window,
            kv_tokens=blocks * BLOCK,
            max_sequences=max_sequences,
            parameters=_HONOURED,
            prefix_block=BLOCK,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def stats(self) -> EngineStats:
        return EngineStats(len(self._sequences), self._kv_usage, self._steps)

    def scheduler(self) -> openvino_genai.SchedulerConfig:
        """The runtime's scheduler settings, also for a benchmark that drives it bare."""
        config = openvino_genai.SchedulerConfig()
        config.num_kv_blocks = self._blocks
        config.max_num_batched_tokens = self._info.context_window + self._prompt_tokens_per_step + self._blocks * BLOCK
        config.max_num_seqs = self._info.max_sequences
        config.dynamic_split_fuse = True
        config.enable_prefix_caching = True
        return config

    def generation(self, sampling: SamplingParams) -> openvino_genai.GenerationConfig:
        """The runtime's settings for one request."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = sampling.max_tokens
        config.min_new_tokens = sampling.min_tokens
        # It checks that the end-of-text id is one of the stop ids, and with its own ignore_eos it would go on past
        # every stop id: whoever ignores the end-of-text gets none, and keeps the stop ids that were asked for.
        stops = self._stops(sampling)
        config.ignore_eos = not stops
        config.stop_token_ids = set(stops or self._eos)
        config.eos_token_id = min(config.stop_token_ids)
        config.repetition_penalty = sampling.repetition_penalty
        config.presence_penalty = sampling.presence_penalty
        config.frequency_penalty = sampling.frequency_penalty
        if sampling.logprobs is not None:
            config.logprobs = 1
        # The runtime computes in float32 and refuses min_p 1, which leaves only the most likely token: greedy.
        config.do_sample = sampling.temperature > 0 and np.float32(sampling.min_p) < 1
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.min_p = sampling.min_p
            if sampling.top_k:
                config.top_k = sampling.top_k
            config.rng_seed = secrets.randbits(32) if sampling.seed is None else sampling.seed % 2**32
        return config

    def _open(self) -> None:
        try:
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(
                str(self._folder), self.scheduler(), "CPU", dict(self._properties)
            )
        except Exception as error:
            raise ModelUnavailable(f"OpenVINO cannot load the model: {_last_line(error)}") from error
        self._cache.clear()

    def _close(self) -> None:
        # A cancelled request gives its blocks back in the next step; without one they count as leaked.
        with contextlib.suppress(Exception):
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()
        self._pipeline = None

    def cached(self, prompt: Sequence[int]) -> int:
        return self._cache.known(prompt)

    def _busy(self) -> bool:
        return bool(self._sequences or self._arrivals)

    def _abandon(self) -> list[int]:
        for sequence in self._sequences.values():
            with contextlib.suppress(Exception):
                sequence.handle.cancel()
        numbers = [*self._sequences, *(arrival.sequence for arrival in self._arrivals)]
        self._sequences.clear()
        self._arrivals.clear()
        return numbers

    def _apply(self, command: Command) -> Iterable[Update]:
        match command:
            case Submit():
                self._arrivals.append(command)
            case Cancel(number):
                sequence = self._sequences.get(number)
                if sequence is not None and not sequence.cancelled:
                    sequence.cancelled = True
                    sequence.handle.cancel()
                    # Now, not after the next step: its blocks are free for whoever is added before that.
                    self._cache.computed(sequence.computed, ended=True)
                waiting = [arrival for arrival in self._arrivals if arrival.sequence == number]
                if waiting:
                    self._arrivals.remove(waiting[0])
                    return [Update(number, ended=EndReason.CANCELLED)]
        return []

    def _admit(self, updates: list[Update]) -> None:
        """Add arrivals, in order, for as many prompt tokens as the next step may read."""
        left = []
        budget = self._prompt_tokens_per_step
        while self._arrivals and budget > 0:
            arrival = self._arrivals.popleft()
            new = len(arrival.prompt) - self._cache.known(arrival.prompt)
            fits = new <= budget or budget == self._prompt_tokens_per_step
            if not fits or not self._cache.claim(arrival.sequence, arrival.prompt):
                left.append(arrival)
                budget = budget if fits else 0
                continue
            budget -= new
            try:
                self._sequences[arrival.sequence] = self._add(arrival.sequence, arrival.prompt, arrival.sampling)
            except Exception as error:
                self._cache.release(arrival.sequence)
                detail = f"OpenVINO refused it: {_last_line(error)}"
                updates.append(Update(arrival.sequence, ended=EndReason.ERROR, detail=detail))
        self._arrivals.extendleft(reversed(left))

    def _add(self, number: int, prompt: Sequence[int], sampling: SamplingParams | None) -> _Sequence:
        only_read = sampling is None
        wanted = sampling or SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        handle = self._pipeline.add_request(number, ids, self.generation(wanted))
        return _Sequence(handle, only_read, wanted.logprobs is not None, list(prompt))

    def _stops(self, sampling: SamplingParams) -> frozenset[int]:
        return sampling.stop_token_ids if sampling.ignore_eos else sampling.stop_token_ids | self._eos

    def _step(self, updates: list[Update]) -> None:
        self._admit(updates)
        self._pipeline.step()
        for number in list(self._sequences):
            sequence = self._sequences[number]
            update = self._read(number, sequence)
            if update is not None:
                self._note(sequence, update)
                updates.append(update)
                if update.ended is not None:
                    del self._sequences[number]
        if not self._sequences or self._steps % 16 == 0:
            self._kv_usage = self._pipeline.get_metrics().cache_usage / 100

    def _note(self, sequence: _Sequence, update: Update) -> None:
        """Keep the mirror of the cache up to date: when a prompt has been read, and when its sequence ends."""
        first = sequence.said == 0
        sequence.said += len(update.ids)
        sequence.ids += update.ids
        if first:
            self._cache.release(update.sequence)
        if first or update.ended is not None:
            self._cache.computed(sequence.computed, ended=update.ended is not None)

    def _read(self, number: int, sequence: _Sequence) -> Update | None:
        handle = sequence.handle
        if sequence.cancelled:
            return Update(number, ended=EndReason.CANCELLED)
        # An ignored request has something to read too, and it is empty.
        outputs = list(handle.read().values()) if handle.can_read() else []
        if outputs:
            return self._said(number, sequence, outputs[0])
        status = handle.get_status()
        if status == _Status.RUNNING:
            return None
        if status == _Status.IGNORED:
            return Update(number, ended=EndReason.OUT_OF_MEMORY)
        return Update(number, ended=EndReason.ERROR, detail=f"OpenVINO ended it as {status.name} without a token.")

    def _said(self, number: int, sequence: _Sequence, output: Any) -> Update:
        if sequence.only_read:
            return Update(number, ended=EndReason.PREFILLED)
        ids = output.generated_ids
        ended = None
        if output.finish_reason != _Finish.NONE:
            ended = EndReason.STOP if output.finish_reason == _Finish.STOP else EndReason.LENGTH
        elif sequence.handle.get_status() == _Status.IGNORED:
            ended = EndReason.OUT_OF_MEMORY
        logprobs: Sequence[TokenLogprob] = ()
        if sequence.logprobs:
            logprobs = [TokenLogprob(id_, p) for id_, p in zip(ids, output.generated_log_probs, strict=True)]
        return Update(number, ids, logprobs, ended)


def _last_line(error: Exception) -> str:
    """What the runtime says is wrong; the lines above are its source files."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
