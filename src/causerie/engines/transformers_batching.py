"""transformers' continuous batching, driven one step at a time on the caller's thread.

Its manager would run a loop of its own that dies with the first exception and samples by settings that hold for all
requests. Here the manager is only built, and its batch processor stepped; what chooses tokens is put where the manager
keeps its logits processors. Names used of transformers beside its documented ones: the manager's ``logit_processor``
and ``batch_processor``, and the latter's ``prepare_next_batch``, ``_generation_step``, ``update_batch`` and
``scheduler.block_new_requests``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

PAGE = 32
"""Tokens in a page of the KV cache, and so the grain of prefix sharing."""


@dataclass(frozen=True, slots=True)
class Part:
    """A sequence's part in a step: how many tokens were computed for it, and the id that was chosen after them.

    ``id`` is None while the prompt is still being read.
    """

    sequence: int
    tokens: int
    id: int | None


Choose: TypeAlias = Callable[[Tensor, Sequence[int]], Sequence[int]]
"""Logits [n, vocabulary] and the n sequences they belong to, to n ids."""


_GENERATION = {"do_sample": False, "eos_token_id": -1}
"""argmax, over rows in which one token is possible; no end-of-text."""


def _config(**sizes: int) -> dict[str, Any]:
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    return {
        **sizes,
        "page_size" if "page_size" in known else "block_size": PAGE,
        "max_blocks_per_request": 0,
        # Admission has counted the cache already; holding some back would only keep admitted work waiting.
        "safety_margin": 0.0,
        "use_async_batching": False,
        "use_cuda_graph": False,
        # Fetching kernels off the network is not for a server to decide.
        **({"auto_switch_to_flash": False} if "auto_switch_to_flash" in known else {}),
    }


class _Chooser:
    """Stands where transformers keeps its logits processors: leaves one token possible in each row."""

    do_processing = True
    tensors_required = 0

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._scheduled: list[tuple[int, int, bool]] = []
        self._ids: Iterator[int] = iter(())

    def parts(self) -> list[Part]:
        """What the last step did."""
        return [
            Part(sequence, tokens, next(self._ids) if samples else None)
            for sequence, tokens, samples in self._scheduled
        ]

    def fill_defaults(self, storage: Tensor) -> None:
        """No arguments are kept in tensors."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """No arguments are passed with requests."""

    def prepare_tensor_args(self, requests_in_batch: Iterable[Any], arg_storage: Tensor) -> Tensor:
        self._scheduled = [
            (int(request.state.request_id), request.query_length, request.has_new_token)
            for request in requests_in_batch
        ]
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, args: Tensor) -> Tensor:
        sequences = [sequence for sequence, _, samples in self._scheduled if samples]
        # Requests that are still being read have rows too, after the others; nobody looks at them.
        ids = self._choose(scores[: len(sequences)], sequences) if sequences else []
        self._ids = iter(ids)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, 0] = 0.0
        for row, id_ in enumerate(ids):
            forced[row, 0] = -torch.inf
            forced[row, id_] = 0.0
        return forced


class Batcher:
    """A KV cache of ``blocks`` pages and the sequences in it. One thread.

    Raises whatever transformers raises for a model that it does not accept, and MemoryError for a cache that does not
    fit. After an exception out of ``step`` it is of no more use.
    """

    def __init__(self, model: Any, choose: Choose, *, blocks: int, max_sequences: int, step_tokens: int) -> None:
        self._chooser = _Chooser(choose)
        generation = GenerationConfig(**_GENERATION)  # type: ignore[no-untyped-call]
        config = ContinuousBatchingConfig(
            **_config(num_blocks=blocks, max_requests_per_batch=max_sequences, max_batch_tokens=step_tokens)
        )
        self._manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
        self._manager.logit_processor = self._chooser
        self._manager.warmup()
        self._processor = self._manager.batch_processor
        self._model = model

    def add(self, sequence: int, prompt: Sequence[int]) -> None:
        """Generate after ``prompt`` until cancelled. Ends are the caller's to see: transformers miscounts the tokens of
        a sequence that had to make room and was read again, and shares no page of one that ends by itself."""
        self._manager.add_request(list(prompt), request_id=str(sequence))

    def cancel(self, sequence: int) -> None:
        """Forget a sequence at the beginning of the next step."""
        self._manager.cancel_request(str(sequence))
        # Set when a sequence had to make room, and cleared by transformers only where one ends by itself.
        self._processor.scheduler.block_new_requests = False

    def step(self) -> list[Part]:
        """One forward pass; empty where there was nothing to do."""
        if not self._processor.prepare_next_batch():
            return []
        self._processor._generation_step(self._model)
        self._processor.update_batch()
        return self._chooser.parts()
