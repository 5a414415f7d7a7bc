"""OpenVINO GenAI's continuous batching pipeline, as the engine's child process runs it.

It has a process of its own because its ``step`` holds Python's interpreter lock for as long as it computes
(``docs/log.md``): on a thread, nobody would be answered meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import openvino
import openvino_genai
from openvino_genai import py_openvino_genai

from causerie.engines import openvino_vocabulary
from causerie.engines.base import EndReason
from causerie.engines.child import last_line
from causerie.engines.json_grammar import ebnf
from causerie.engines.openvino_messages import Add, Said, Setup, Step, Stepped
from causerie.types import SamplingParams

_Status = py_openvino_genai.GenerationStatus
_Finish = py_openvino_genai.GenerationFinishReason


class _Running(NamedTuple):
    handle: Any
    logprobs: bool


class Runtime:
    """The pipeline and what runs in it."""

    def __init__(self, setup: Setup) -> None:
        self._eos = setup.eos_token_ids
        self._pipeline = pipeline(setup)
        self._running: dict[int, _Running] = {}

    def step(self, step: Step) -> Stepped:
        for number in step.cancelled:
            if (gone := self._running.pop(number, None)) is not None:
                gone.handle.cancel()
        said = [refused for new in step.added if (refused := self._add(new)) is not None]
        self._pipeline.step()
        for number, running in list(self._running.items()):
            if (gained := _read(number, running)) is not None:
                said.append(gained)
                if gained.ended is not None:
                    del self._running[number]
        return Stepped(said, self._pipeline.get_metrics().cache_usage / 100)

    def _add(self, new: Add) -> Said | None:
        ids = openvino.Tensor(np.array([new.prompt], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(new.sequence, ids, generation(new.sampling, self._eos, new.grammar))
        except Exception as error:
            return Said(new.sequence, ended=EndReason.ERROR, detail=f"OpenVINO refused it: {last_line(error)}")
        self._running[new.sequence] = _Running(handle, new.sampling.logprobs is not None)
        return None


def pipeline(setup: Setup) -> Any:
    """The pipeline itself, also for a benchmark that drives it bare. Raises what the runtime raises."""
    config = openvino_genai.SchedulerConfig()
    config.num_kv_blocks = setup.blocks
    config.max_num_batched_tokens = setup.batched_tokens
    config.max_num_seqs = setup.max_sequences
    config.dynamic_split_fuse = True
    config.enable_prefix_caching = True
    make = openvino_genai.ContinuousBatchingPipeline
    if setup.vocabulary is None:
        return make(setup.folder, config, "CPU", dict(setup.properties))
    return make(setup.folder, openvino_vocabulary.tokenizer(setup.vocabulary), config, "CPU", **setup.properties)


def generation(
    sampling: SamplingParams, eos_token_ids: frozenset[int], grammar: str | None = None
) -> openvino_genai.GenerationConfig:
    """The runtime's settings for one request."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = sampling.max_tokens
    config.min_new_tokens = sampling.min_tokens
    # It checks that the end-of-text id is one of the stop ids, and with its own ignore_eos it would go on past
    # every stop id: whoever ignores the end-of-text gets none, and keeps the stop ids that were asked for.
    stops = sampling.stop_token_ids if sampling.ignore_eos else sampling.stop_token_ids | eos_token_ids
    config.ignore_eos = not stops
    config.stop_token_ids = set(stops or eos_token_ids)
    config.eos_token_id = min(config.stop_token_ids)
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    if sampling.logprobs is not None:
        config.logprobs = 1
    if sampling.json_schema is not None:
        grammar = ebnf(sampling.json_schema)
    if grammar is not None:
        config.structured_output_config = openvino_genai.StructuredOutputConfig(grammar=grammar)
    # The runtime computes in float32 and refuses min_p 1, which leaves only the most likely token: greedy.
    config.do_sample = sampling.temperature > 0 and np.float32(sampling.min_p) < 1
    if config.do_sample:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = sampling.min_p
        if sampling.top_k:
            config.top_k = sampling.top_k
        # It samples every request that names no seed from the same one.
        config.rng_seed = secrets.randbits(32) if sampling.seed is None else sampling.seed % 2**32
    return config


def _read(number: int, running: _Running) -> Said | None:
    handle = running.handle
    # A request that the runtime ignored, for want of memory, has something to read too, and it is empty.
    outputs = list(handle.read().values()) if handle.can_read() else []
    if not outputs:
        status = handle.get_status()
        if status == _Status.RUNNING:
            return None
        if status == _Status.IGNORED:
            return Said(number, ended=EndReason.OUT_OF_MEMORY)
        return Said(number, ended=EndReason.ERROR, detail=f"OpenVINO ended it as {status.name} without a token.")
    output = outputs[0]
    ended = None
    if output.finish_reason != _Finish.NONE:
        ended = EndReason.STOP if output.finish_reason == _Finish.STOP else EndReason.LENGTH
    elif handle.get_status() == _Status.IGNORED:
        ended = EndReason.OUT_OF_MEMORY
    return Said(number, output.generated_ids, output.generated_log_probs if running.logprobs else (), ended)


def handler() -> Callable[[Any], object]:
    """What the child process answers by: to a ``Setup``, once, with None, to every ``Step`` with a ``Stepped``."""
    runtime: Runtime | None = None

    def handle(question: Setup | Step) -> Stepped | None:
        nonlocal runtime
        if isinstance(question, Setup):
            runtime = Runtime(question)
            return None
        assert runtime is not None
        return runtime.step(question)

    return handle
