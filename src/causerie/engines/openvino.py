"""OpenVINO GenAI's continuous batching as an engine: paged KV cache, prefix caching, all sequences in each step.

The runtime itself runs in a child process (``openvino_runtime``); here is what is decided between two steps. What was
read and tried of the runtime stands in ``docs/log.md``. What matters here: it enforces neither a context window nor
``max_num_seqs`` (the service does), it says IGNORED where it ran out of blocks (a failure, not a finish), and it does
not say how many prompt tokens it reused (``CacheMirror`` follows its cache to know).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from causerie.engines.base import EndReason, EngineConfig, EngineInfo, EngineStats, Update
from causerie.engines.child import Child, ChildDied, ChildError
from causerie.engines.ebnf import literal
from causerie.engines.openvino_cache import CacheMirror
from causerie.engines.openvino_dictation import Dictation
from causerie.engines.openvino_messages import Add, Said, Setup, Step, Stepped
from causerie.engines.openvino_open_ends import OpenEnds
from causerie.engines.stepping import LOST, Cancel, Command, SteppingEngine, Submit
from causerie.errors import ModelUnavailable
from causerie.types import SamplingParams, TokenLogprob

logger = logging.getLogger("causerie.engine")

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


_READ_ONLY = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
"""What a prompt is submitted with that is only to be read: the runtime has no request without a token."""


_FAILURES = (EndReason.ERROR, EndReason.OUT_OF_MEMORY)


@dataclass(slots=True)
class _Sequence:
    arrival: Submit
    ids: list[int]
    """The prompt, as far as the runtime was given it, and what was generated after it."""
    cached: int | None = None
    said: int = 0
    cancelled: bool = False

    @property
    def computed(self) -> list[int]:
        """The ids whose keys and values are in the cache: a sampled token's are computed with the next one."""
        return self.ids[:-1] if self.said else self.ids


class OpenVINOEngine(SteppingEngine):
    """Runs an OpenVINO IR folder on the CPU.

    ``properties`` are the runtime's; they must name KV_CACHE_PRECISION, so that the cache's size is known.
    ``prompt_tokens_per_step`` is how many new prompt tokens a step reads beside its running sequences; a longer
    prompt has a step for itself. It is never split over two: the runtime registers a prompt's blocks in its prefix
    cache as whole before they are, and would hand one out half filled if the request were cancelled then.
    """

    def __init__(self, config: EngineConfig, *, prompt_tokens_per_step: int, properties: dict[str, str]) -> None:
        super().__init__()
        self._prompt_tokens_per_step = prompt_tokens_per_step
        per_token = config.kv_bytes_per_token / 2 * _ELEMENT_BYTES[properties["KV_CACHE_PRECISION"]]
        blocks = max(1, int(config.kv_cache_bytes / per_token / BLOCK))
        self.setup = Setup(
            folder=str(config.folder),
            blocks=blocks,
            batched_tokens=config.context_window + prompt_tokens_per_step + blocks * BLOCK,  # never met, see above
            max_sequences=config.max_sequences,
            eos_token_ids=config.eos_token_ids,
            properties=properties,
        )
        self._sequences: dict[int, _Sequence] = {}
        self._arrivals: deque[Submit] = deque()
        self._cancelled: list[int] = []
        self._unread: list[int] = []
        """Sequences of which the runtime has read a part and is to be given the next."""
        self._retried: set[int] = set()
        self._vocabulary = config.vocabulary
        self._dictation: Dictation | None = None
        self._cache = CacheMirror(BLOCK, blocks)
        self._open_ends = OpenEnds(BLOCK, blocks)
        self._runtime: Child | None = None
        self._kv_usage = 0.0
        self._info = EngineInfo(
            name="openvino",
            context_window=config.context_window,
            kv_tokens=blocks * BLOCK,
            max_sequences=config.max_sequences,
            parameters=_HONOURED if config.vocabulary is None else _HONOURED | {"json_schema"},
            prefix_block=BLOCK,
            partial_blocks=True,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def runtime_pid(self) -> int | None:
        """The process that computes; None where none was started."""
        return self._runtime.pid if self._runtime is not None else None

    def stats(self) -> EngineStats:
        return EngineStats(len(self._sequences), self._kv_usage, self._steps)

    def cached(self, prompt: Sequence[int]) -> int:
        return self._cache.known(prompt)

    def _open(self) -> None:
        self._close()
        self._runtime = Child("causerie.engines.openvino_runtime")
        vocabulary = None if self._vocabulary is None else self._vocabulary()  # While the process starts.
        self._dictation = None if vocabulary is None else Dictation(vocabulary)
        try:
            self._runtime.ask(replace(self.setup, vocabulary=vocabulary))
            self._cache.clear()
            self._open_ends.clear()
            if vocabulary is not None:
                self._warm_up(self._runtime)
        except (ChildError, ChildDied) as error:
            self._close()
            raise ModelUnavailable(f"OpenVINO cannot load the model: {error}") from error

    def _warm_up(self, runtime: Child) -> None:
        """Its first grammar takes the runtime 40 ms, and whoever brings it would let everybody wait for that."""
        number, prompt = -1, [0]
        add = Add(number, prompt, _READ_ONLY, f"root ::= {literal('.')}")
        self._sequences[number] = _Sequence(Submit(number, prompt, None), prompt)
        self._follow([add], runtime.ask(Step([], [add])))
        del self._sequences[number]

    def _close(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def _busy(self) -> bool:
        return bool(self._sequences or self._arrivals)

    def _abandon(self) -> list[int]:
        numbers = [*self._sequences, *(arrival.sequence for arrival in self._arrivals)]
        self._sequences.clear()
        self._arrivals.clear()
        self._cancelled.clear()
        self._unread.clear()
        return numbers

    def _apply(self, command: Command) -> Iterable[Update]:
        match command:
            case Submit():
                self._arrivals.append(command)
            case Cancel(number):
                sequence = self._sequences.get(number)
                if sequence is not None and not sequence.cancelled:
                    sequence.cancelled = True
                    self._cancelled.append(number)
                    # Now, not after the next step: its blocks are free for whoever is added in that.
                    self._open_ends.leave(sequence.computed)
                waiting = [arrival for arrival in self._arrivals if arrival.sequence == number]
                if waiting:
                    self._arrivals.remove(waiting[0])
                    return [Update(number, ended=EndReason.CANCELLED)]
        return []

    def _admit(self) -> list[Add]:
        """Take in arrivals, in order, for as many prompt tokens as the next step may read."""
        added = self._read_on()
        left = []
        budget = self._prompt_tokens_per_step
        while self._arrivals and budget > 0:
            arrival = self._arrivals.popleft()
            new = len(arrival.prompt) - self._cache.known(arrival.prompt)
            fits = new <= budget or budget == self._prompt_tokens_per_step
            sequence = _Sequence(arrival, [])
            add = self._ask(sequence) if fits else None
            if add is None:
                left.append(arrival)
                budget = budget if fits else 0
                continue
            budget -= new
            self._sequences[arrival.sequence] = sequence
            added.append(add)
        self._arrivals.extendleft(reversed(left))
        return added

    def _read_on(self) -> list[Add]:
        """The next part of everything that is read in several."""
        unread, self._unread = self._unread, []
        added = []
        for sequence in (self._sequences[number] for number in unread):
            if sequence.cancelled:
                continue
            if (add := self._ask(sequence)) is not None:
                added.append(add)
            else:
                self._unread.append(sequence.arrival.sequence)
        return added

    def _ask(self, sequence: _Sequence) -> Add | None:
        """What the runtime is to do for it next; None where it must not be given that in this step."""
        arrival = sequence.arrival
        if arrival.sampling is not None:
            add = Add(arrival.sequence, arrival.prompt, arrival.sampling)
        else:
            add = self._read(arrival)
        if not self._open_ends.claim(add.sequence, add.prompt):
            return None
        sequence.ids, sequence.said = list(add.prompt), 0
        return add

    def _read(self, arrival: Submit) -> Add:
        """Have the runtime read a prompt, or, where it shall be gentle and can, generate the prompt's next tokens."""
        number, prompt, known = arrival.sequence, arrival.prompt, self._cache.found(arrival.prompt)
        beside = arrival.gently and any(other.arrival.sampling is not None for other in self._sequences.values())
        if beside and self._dictation is not None and (dictated := self._dictation.begin(prompt[known + 1 :])):
            count, grammar, others = dictated
            # The last token that it says is anything: it is there for the one before to be computed.
            sampling = replace(_READ_ONLY, max_tokens=count + 1, min_tokens=count, stop_token_ids=others)
            return Add(number, prompt[: known + 1], sampling, grammar)
        # A block that it finds partly filled is registered as filled only when something comes behind it.
        behind = bool(known % BLOCK) and len(prompt) % BLOCK == 0
        return Add(number, prompt, replace(_READ_ONLY, max_tokens=2) if behind else _READ_ONLY)

    def _step(self, updates: list[Update]) -> None:
        assert self._runtime is not None
        added = self._admit()
        try:
            stepped: Stepped = self._runtime.ask(Step(self._cancelled, added))
        except ChildDied as death:
            self._bury(death, updates)
            return
        self._follow(added, stepped)
        for number in self._cancelled:
            del self._sequences[number]
            updates.append(Update(number, ended=EndReason.CANCELLED))
        self._cancelled = []
        updates.extend(filter(None, map(self._take, stepped.said)))
        self._kv_usage = stepped.kv_usage

    def _bury(self, death: ChildDied, updates: list[Update]) -> None:
        """The runtime is gone: a new one takes what had not begun, once; what had begun is never generated again."""
        logger.error("%s What had begun to be answered ends as failed; a new one is started.", death)
        again = []
        for number, sequence in self._sequences.items():
            if sequence.cancelled:
                updates.append(Update(number, ended=EndReason.CANCELLED))
            elif (sequence.said and sequence.arrival.sampling is not None) or number in self._retried:
                updates.append(Update(number, ended=EndReason.ERROR, detail=LOST))
            else:
                again.append(sequence.arrival)
        self._retried = {arrival.sequence for arrival in again}
        self._sequences.clear()
        self._cancelled.clear()
        self._unread.clear()
        self._arrivals.extendleft(reversed(again))
        self._open()

    def _follow(self, added: Sequence[Add], stepped: Stepped) -> None:
        """Let the mirror of the cache take the step that the runtime has taken."""
        cache = self._cache
        lost = {said.sequence for said in stepped.said if said.ended in _FAILURES}
        for new in added:
            if new.sequence not in lost:
                sequence, cached = self._sequences[new.sequence], cache.add(new.sequence, new.prompt)
                sequence.cached = cached if sequence.cached is None else sequence.cached
        cache.step(self._cancelled)
        if cache.sure and cache.held != round(stepped.kv_usage * self.setup.blocks):
            logger.warning("what is cached of a prompt cannot be told any more: the runtime holds other blocks")
            cache.sure = False
        for number, ids, *_ in stepped.said:
            cache.gained(number, ids)
        cache.remove([*self._cancelled, *(said.sequence for said in stepped.said if said.ended is not None)])

    def _take(self, said: Said) -> Update | None:
        number, ids, logprobs, ended, detail = said
        sequence = self._sequences[number]
        first = sequence.said == 0
        sequence.said += len(ids)
        sequence.ids += ids
        if first:
            self._open_ends.release(number)
        if ended is not None:
            self._open_ends.leave(sequence.computed)
        if sequence.arrival.sampling is None and ids and ended not in _FAILURES:
            return None if ended is None else self._has_read(sequence)
        if ended is not None:
            del self._sequences[number]
        cached = sequence.cached if first and self._cache.sure else None
        known = [TokenLogprob(*pair) for pair in zip(ids, logprobs, strict=True)] if logprobs else ()
        return Update(number, ids, known, ended, detail, cached)

    def _has_read(self, sequence: _Sequence) -> Update | None:
        """It was given as much of its prompt as the runtime had been asked to read."""
        number, prompt = sequence.arrival.sequence, sequence.arrival.prompt
        read = min(len(sequence.computed), len(prompt))
        if sequence.computed[:read] != list(prompt[:read]):
            logger.warning("tokens were not read as they were dictated; from now on, whole pieces are read")
            self._dictation = None
            read = 0
        if read < len(prompt):
            self._unread.append(number)
            return None
        del self._sequences[number]
        return Update(number, ended=EndReason.PREFILLED, cached_tokens=sequence.cached if self._cache.sure else None)
