"""transformers' continuous batching, driven one step at a time on the caller's thread.

Its manager would run a loop of its own that dies with the first exception and samples by settings that hold for all
requests. Here the manager is only built, and its batch processor stepped; what chooses tokens is put where the manager
keeps its logits processors. Names used of transformers beside its documented ones: the manager's ``logit_processor``
and ``batch_processor``, and the latter's ``prepare_next_batch``, ``_generation_step`` and ``update_batch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

PAGE = 32
"""Tokens in a page of the KV cache, and so the grain of prefix sharing."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A sequence's part in a step: how many tokens are computed for it, and whether that yields a new one."""

    sequence: int
    tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Gained:
    """All that a sequence has sampled so far, and whether it is done with."""

    sequence: int
    ids: Sequence[int]
    finished: bool


Choose: TypeAlias = Callable[[Tensor, Sequence[int]], Sequence[int]]
"""Logits [n, vocabulary] and the n sequences they belong to, to n ids."""


_GENERATION = {"do_sample": False, "eos_token_id": -1, "max_new_tokens": 1}
"""argmax, over rows in which one token is possible."""


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
        self.scheduled: list[Scheduled] = []

    def fill_defaults(self, storage: Tensor) -> None:
        """No arguments are kept in tensors."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """No arguments are passed with requests."""

    def prepare_tensor_args(self, requests_in_batch: Iterable[Any], arg_storage: Tensor) -> Tensor:
        self.scheduled = [
            Scheduled(int(request.state.request_id), request.query_length, request.has_new_token)
            for request in requests_in_batch
        ]
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, args: Tensor) -> Tensor:
        sequences = [part.sequence for part in self.scheduled if part.samples]
        # Requests that are still being read have rows too, after the others; nobody looks at them.
        chosen = self._choose(scores[: len(sequences)], sequences) if sequences else []
        forced = torch.full_like(scores, -torch.inf)
        forced[:, 0] = 0.0
        for row, id_ in enumerate(chosen):
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

    def add(self, sequence: int, prompt: Sequence[int], max_tokens: int, stops: Iterable[int]) -> None:
        """Generate after ``prompt`` until ``max_tokens`` or one of ``stops`` has been sampled."""
        # An empty list of stops would bring the manager's own default in; -1 is its word for none.
        self._manager.add_request(
            list(prompt),
            request_id=str(sequence),
            max_new_tokens=max_tokens,
            streaming=True,
            eos_token_id=list(stops) or -1,
        )

    def cancel(self, sequence: int) -> None:
        """Forget a sequence at the beginning of the next step."""
        self._manager.cancel_request(str(sequence))

    def step(self) -> tuple[list[Scheduled], list[Gained]]:
        """One forward pass: what was in it, and what came out of it. Both are empty where there was nothing to do."""
        if not self._processor.prepare_next_batch():
            return [], []
        self._processor._generation_step(self._model)
        self._processor.update_batch()
        gained = []
        while (output := self._manager.get_result(timeout=0)) is not None:
            if output.error is not None:
                raise RuntimeError(output.error)
            gained.append(Gained(int(output.request_id), output.generated_tokens, output.is_finished()))
        return self._chooser.scheduled, gained
