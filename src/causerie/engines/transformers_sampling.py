"""Choosing the next token of each row of a batch, each row by its own parameters.

transformers' own processors know one seed, one greedy switch and no penalties per request; this is why the engine
samples here. The order is vLLM's: penalties, ``min_tokens``, temperature, ``min_p``, ``top_k``, ``top_p``. One
uniform number is drawn per token, from the row's own generator, so that a seed repeats whatever else is in the batch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from causerie.engines.transformers_guide import Guide
from causerie.types import SamplingParams, TokenLogprob

MAX_TOP_LOGPROBS = 20
"""The OpenAI API's limit."""


@dataclass(slots=True)
class Row:
    """What sampling has to know of one sequence. ``stops`` are the ids that end it, all below the vocabulary's size."""

    sampling: SamplingParams
    prompt: Sequence[int]
    stops: frozenset[int]
    said: Counter[int] = field(default_factory=Counter)
    seen: set[int] = field(default_factory=set)
    generator: random.Random = field(default_factory=random.Random)
    guide: Guide | None = None

    def __post_init__(self) -> None:
        if self.sampling.seed is not None:
            self.generator.seed(self.sampling.seed)
        if self.sampling.repetition_penalty != 1.0:
            self.seen.update(self.prompt)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0.0 or self.sampling.top_k == 1

    def add(self, id_: int) -> None:
        """Take note of a chosen id."""
        self.said[id_] += 1
        if self.sampling.repetition_penalty != 1.0:
            self.seen.add(id_)
        if self.guide is not None and id_ not in self.stops:
            self.guide.add(id_)


@torch.no_grad()
def choose(logits: Tensor, rows: Sequence[Row]) -> tuple[list[int], list[TokenLogprob | None]]:
    """The next id of each row, and its log-probability where that is asked for.

    ``logits`` is float32 of shape [rows, vocabulary] and is overwritten. Log-probabilities are the model's own, before
    any of the row's parameters reshape them. Raises FloatingPointError for logits that are no numbers.
    """
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise FloatingPointError("the model computed logits that are not finite")
    asked = [index for index, row in enumerate(rows) if row.sampling.logprobs is not None]
    reported = torch.log_softmax(logits[asked], -1) if asked else None
    for index, row in enumerate(rows):
        _reshape(logits[index], row)
    ids = logits.argmax(-1)
    for drawn in _groups(rows):
        ids[drawn] = _draw(logits[drawn], [rows[index] for index in drawn])
    chosen: list[int] = ids.tolist()
    logprobs: list[TokenLogprob | None] = [None] * len(rows)
    if reported is not None:
        for place, index in enumerate(asked):
            logprobs[index] = _report(reported[place], chosen[index], rows[index].sampling.logprobs or 0)
    for row, id_ in zip(rows, chosen, strict=True):
        row.add(id_)
    return chosen, logprobs


def _reshape(logits: Tensor, row: Row) -> None:
    """Penalties, ``min_tokens`` and ``json_schema``, in place, on one row. What penalties change stays finite."""
    sampling = row.sampling
    device = logits.device
    if row.seen:
        seen = torch.tensor(sorted(row.seen), device=device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = _finite(torch.where(values > 0, values / penalty, values * penalty))
    if row.said and (sampling.presence_penalty or sampling.frequency_penalty):
        said = torch.tensor(list(row.said), device=device)
        counts = torch.tensor(list(row.said.values()), device=device, dtype=logits.dtype)
        logits[said] = _finite(logits[said] - sampling.presence_penalty - sampling.frequency_penalty * counts)
    if row.said.total() < sampling.min_tokens and 0 < len(row.stops) < len(logits):
        # What the model itself rules out is still better than nothing, where a request rules out all the rest.
        logits.copy_(_finite(logits))
        logits[torch.tensor(sorted(row.stops), device=device)] = -torch.inf
    if row.guide is not None:
        row.guide.narrow(logits)


def _finite(logits: Tensor) -> Tensor:
    limits = torch.finfo(logits.dtype)
    return logits.clamp(limits.min, limits.max)


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """The rows to be drawn, those that need their vocabulary sorted apart from those that do not."""
    plain = [index for index, row in enumerate(rows) if not row.greedy and not _is_cut(row)]
    cut = [index for index, row in enumerate(rows) if not row.greedy and _is_cut(row)]
    return [group for group in (plain, cut) if group]


def _is_cut(row: Row) -> bool:
    return row.sampling.top_k > 0 or row.sampling.top_p < 1.0


def _draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """One id per row, by inverting its cumulative distribution at one uniform number."""
    # A sum over a whole vocabulary loses small probabilities in float32; Apple's GPUs know nothing wider.
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=dtype).unsqueeze(-1)

    temperature = column([row.sampling.temperature for row in rows])
    # The largest becomes 0 before the division, so that no temperature, however small, overflows.
    wide = logits.to(dtype)
    probs = torch.softmax((wide - wide.amax(-1, keepdim=True)) / temperature, -1)
    min_p = column([row.sampling.min_p for row in rows])
    probs = probs.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), 0.0)
    order = None
    if _is_cut(rows[0]):
        probs, order = _cut(probs, rows, column([row.sampling.top_p for row in rows]))
    summed = probs.cumsum(-1)
    total = summed[:, -1:].contiguous()
    place = torch.searchsorted(summed, column([row.generator.random() for row in rows]) * total, right=True)
    # Rounding may put the product at the very end, where probabilities are zero.
    place = torch.minimum(place, torch.searchsorted(summed, total))
    return (place if order is None else order.gather(-1, place)).squeeze(-1)


def _cut(probs: Tensor, rows: Sequence[Row], top_p: Tensor) -> tuple[Tensor, Tensor]:
    """``top_k``, then ``top_p`` of what it left: falling probabilities, 0 where cut, and their ids."""
    vocabulary = probs.shape[-1]
    limits = [min(row.sampling.top_k or vocabulary, vocabulary) for row in rows]
    kept, order = probs.topk(max(limits), -1)
    rank = torch.arange(kept.shape[-1], device=probs.device)
    kept = kept.masked_fill(rank >= torch.tensor(limits, device=probs.device).unsqueeze(-1), 0.0)
    summed = kept.cumsum(-1)
    return kept.masked_fill(summed - kept >= top_p * summed[:, -1:], 0.0), order


def _report(logprobs: Tensor, chosen: int, alternatives: int) -> TokenLogprob:
    values, ids = logprobs.topk(min(alternatives, MAX_TOP_LOGPROBS, logprobs.shape[-1]))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(chosen, float(logprobs[chosen]), top)
