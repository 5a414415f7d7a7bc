"""Any causal language model that transformers' continuous batching computes, on any device of torch.

Needs the extra: importing this without it raises MissingExtra. Sampling is ours (``transformers_sampling``), so every
request has its own parameters and its own seed; log-probabilities are the model's, before sampling reshapes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from causerie.engines.base import EndReason, EngineConfig, EngineInfo, EngineStats, Update
from causerie.engines.stepping import Cancel, Command, SteppingEngine, Submit
from causerie.errors import MissingExtra, ModelUnavailable
from causerie.types import SamplingParams, TokenLogprob

OLDEST = (5, 11)
"""The first transformers that lets a batch's size be bounded and reads its logits processors from the manager."""

_REMEDY = 'Install it with: pip install "causerie[transformers]"'

try:
    version("psutil")  # without it, transformers believes that a CPU has no memory
    if tuple(int(part) for part in version("transformers").split(".")[:2]) < OLDEST:
        raise MissingExtra(f"This engine needs transformers {OLDEST[0]}.{OLDEST[1]} or newer. {_REMEDY}")
    from causerie.engines.transformers_batching import PAGE, Batcher, Part
    from causerie.engines.transformers_guide import Guide, guiding
    from causerie.engines.transformers_model import describe, load
    from causerie.engines.transformers_sampling import MAX_TOP_LOGPROBS, Row, choose
except (ImportError, PackageNotFoundError):
    raise MissingExtra(f"This model needs torch, transformers, llguidance and psutil. {_REMEDY}") from None

if TYPE_CHECKING:
    from torch import Tensor

_SCHEMA = "The schema is too complex to hold an answer to."
_READ_ONLY = SamplingParams(max_tokens=1, temperature=0.0)


@dataclass(slots=True)
class _Sequence:
    """A sequence that has not ended. ``limit`` is ``max_tokens``, or what cache and context window leave of it."""

    row: Row
    limit: int
    at_limit: EndReason
    prefill: bool
    read: int = 0


class TransformersEngine(SteppingEngine):
    """See ``Engine``.

    ``step_tokens`` bounds how many prompt tokens one step reads, and so how long running sequences wait for it.
    ``device`` is torch's name for one; None takes the machine's accelerator, else the CPU. Attention is torch's own
    on every device (SDPA, or eager where a model knows no SDPA). Its mask takes memory beside the KV cache:
    (``step_tokens`` + 2 ``max_sequences``) times the cache's tokens, in the model's type.

    Raises ModelUnavailable for a model that is not accepted: from the constructor where its config tells, else from
    ``start``, which also compares what batching computes with what the model computes by itself.
    """

    def __init__(self, config: EngineConfig, *, step_tokens: int = 256, device: str | None = None) -> None:
        super().__init__()
        self._folder = config.folder
        self._description = describe(config.folder, device)
        self._eos = config.eos_token_ids
        self._vocabulary = config.vocabulary
        self._guiding: Any = None
        bytes_per_token = config.kv_bytes_per_token * self._description.dtype.itemsize // 2
        self._blocks = max(1, config.kv_cache_bytes // (bytes_per_token * PAGE))
        self._step_tokens = step_tokens
        self._model: Any = None
        self._batcher: Batcher | None = None
        self._sequences: dict[int, _Sequence] = {}
        self._logprobs: dict[int, TokenLogprob | None] = {}
        self._forgetting = False
        self._info = EngineInfo(
            name="transformers",
            context_window=config.context_window,
            kv_tokens=self._blocks * PAGE,
            max_sequences=config.max_sequences,
            parameters=frozenset(SamplingParams.__dataclass_fields__)
            - (frozenset({"json_schema"}) if config.vocabulary is None else frozenset()),
            top_logprobs=MAX_TOP_LOGPROBS,
            prefix_block=PAGE if self._description.shares_prefixes else 0,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def cached(self, prompt: Sequence[int]) -> int:
        """Always 0: pages are shared, but what is shared is only known when a request is scheduled."""
        return 0

    def stats(self) -> EngineStats:
        used = sum(len(it.row.prompt) + it.row.said.total() for it in list(self._sequences.values()))
        return EngineStats(len(self._sequences), min(1.0, used / self._info.kv_tokens), self._steps)

    def _open(self) -> None:
        if self._model is None:
            self._model = load(self._folder, self._description)
            if self._vocabulary is not None:
                ends = [id_ for id_ in self._eos if id_ < self._description.vocabulary]
                self._guiding = guiding(self._vocabulary(), ends)
        # Sequences that are only being read come on top of those that generate.
        most = 2 * self._info.max_sequences
        try:
            self._batcher = Batcher(
                self._model,
                self._choose,
                blocks=self._blocks,
                max_sequences=most,
                step_tokens=self._step_tokens + most,
            )
        except MemoryError:
            raise ModelUnavailable(
                f"A KV cache of {self._info.kv_tokens} tokens does not fit into memory beside {self._folder.name}. "
                "Lower kv_cache_gib."
            ) from None

    def _close(self) -> None:
        self._batcher = None

    def _busy(self) -> bool:
        return bool(self._sequences) or self._forgetting

    def _abandon(self) -> list[int]:
        numbers = list(self._sequences)
        self._sequences.clear()
        self._forgetting = False
        return numbers

    def _apply(self, command: Command) -> Iterable[Update]:
        assert self._batcher is not None
        match command:
            case Submit(number, _, None) if not self._info.prefix_block:
                yield Update(number, ended=EndReason.PREFILLED)
            case Submit(number, prompt, sampling):
                sequence, refusal = self._admit(prompt, sampling)
                if refusal is not None:
                    yield Update(number, ended=refusal[0], detail=refusal[1])
                else:
                    self._sequences[number] = sequence
                    self._batcher.add(number, prompt)
            case Cancel(number):
                if number in self._sequences:
                    self._forget(number)
                    yield Update(number, ended=EndReason.CANCELLED)

    def _admit(
        self, prompt: Sequence[int], sampling: SamplingParams | None
    ) -> tuple[_Sequence, tuple[EndReason, str] | None]:
        """A sequence and why it must not run, if so: what does not fit would take all others down with it."""
        wanted = sampling or _READ_ONLY
        stops = wanted.stop_token_ids if wanted.ignore_eos else wanted.stop_token_ids | self._eos
        vocabulary = self._description.vocabulary
        row = Row(wanted, prompt, frozenset(id_ for id_ in stops if 0 <= id_ < vocabulary))
        window = self._info.context_window - len(prompt)
        # The last sampled token is never read, so it takes no room in the cache.
        room = self._info.kv_tokens - len(prompt) + 1
        limit = min(wanted.max_tokens, window, room)
        at_limit = EndReason.OUT_OF_MEMORY if limit < min(wanted.max_tokens, window) else EndReason.LENGTH
        refusal = None
        if not prompt or min(prompt) < 0 or max(prompt) >= vocabulary:
            refusal = EndReason.ERROR, f"The prompt must hold token ids from 0 to {vocabulary - 1}."
        elif window < 1:
            refusal = (
                EndReason.ERROR,
                f"The prompt leaves no room in the context window of {self._info.context_window}.",
            )
        elif room < 1:
            refusal = EndReason.OUT_OF_MEMORY, ""
        elif wanted.json_schema is not None:
            row.guide = Guide(self._guiding, wanted.json_schema)
            if row.guide.error:
                refusal = EndReason.ERROR, _SCHEMA
        return _Sequence(row, limit, at_limit, prefill=sampling is None), refusal

    def _choose(self, logits: Tensor, numbers: Sequence[int]) -> list[int]:
        ids, logprobs = choose(logits, [self._sequences[number].row for number in numbers])
        self._logprobs = dict(zip(numbers, logprobs, strict=True))
        return ids

    def _step(self, updates: list[Update]) -> None:
        assert self._batcher is not None
        self._forgetting = False
        for part in self._batcher.step():
            update = self._update(part)
            if update is not None:
                updates.append(update)

    def _forget(self, number: int) -> None:
        assert self._batcher is not None
        del self._sequences[number]
        self._batcher.cancel(number)
        self._forgetting = True

    def _update(self, part: Part) -> Update | None:
        sequence = self._sequences[part.sequence]
        sequence.read += part.tokens
        if part.id is None:
            return None
        said = sequence.row.said.total()
        cached = max(0, len(sequence.row.prompt) - sequence.read) if said == 1 else None
        if sequence.prefill:
            self._forget(part.sequence)
            return Update(part.sequence, ended=EndReason.PREFILLED, cached_tokens=cached)
        ended, detail = None, ""
        if sequence.row.guide is not None and sequence.row.guide.error:
            ended, detail = EndReason.ERROR, _SCHEMA
        elif part.id in sequence.row.stops:
            ended = EndReason.STOP
        elif said >= sequence.limit:
            ended = sequence.at_limit
        if ended is not None:
            self._forget(part.sequence)
        logprob = self._logprobs[part.sequence]
        return Update(part.sequence, (part.id,), () if logprob is None else (logprob,), ended, detail, cached)
