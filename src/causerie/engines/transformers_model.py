"""A safetensors folder as a model that continuous batching computes rightly, or the reason why it is not one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from causerie.engines.transformers_batching import PAGE, Batcher
from causerie.errors import ModelUnavailable

T = TypeVar("T")

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_PROBE_PROMPT = PAGE + 8
_PROBE_ANSWER = 3
_TOLERANCE = {torch.float32: 0.01}
_TOLERANCE_OF_HALF = 0.1
"""Bounds on the relative error of a probe's logits: rounding stays far below, a cache that is not read goes over."""


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a model before its weights are read."""

    vocabulary: int
    dtype: torch.dtype
    device: torch.device
    shares_prefixes: bool
    """Whether every layer attends to everything before it; windows of attention cannot share pages."""


def describe(folder: Path, device: str | None) -> Description:
    """Read the folder's config. Raises ModelUnavailable for what is no decoder-only language model."""
    config = _accepted(
        folder, lambda: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    )
    architectures = list(getattr(config, "architectures", None) or [])
    if getattr(config, "is_encoder_decoder", False) or not all(name.endswith(_CAUSAL) for name in architectures):
        named = ", ".join(architectures) or config.model_type
        raise ModelUnavailable(
            f"{folder.name} ({named}) is not a decoder-only language model; only those can be served."
        )
    text = config.get_text_config()
    where = _device(folder, device)
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None) or torch.float32
    if where.type == "cpu" and dtype == torch.float16:
        # CPUs without float16 arithmetic emulate it, slower than float32 computes it.
        dtype = torch.float32
    windows = getattr(text, "layer_types", None) or [
        "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    ]
    return Description(int(text.vocab_size), dtype, where, all(name == "full_attention" for name in windows))


def load(folder: Path, description: Description) -> Any:
    """The model, ready for a ``Batcher``. Raises ModelUnavailable with the reason if that would miscompute it."""
    model = _accepted(folder, lambda: _read(folder, description))
    model.to(description.device).eval()
    error = _accepted(folder, lambda: _probe(model, description.vocabulary))
    if not error <= _TOLERANCE.get(description.dtype, _TOLERANCE_OF_HALF):
        raise ModelUnavailable(
            f"transformers' continuous batching does not compute what {folder.name} ({type(model).__name__}) "
            f"computes by itself (relative error {error:.2f}), so its answers would be wrong."
        )
    return model


def _read(folder: Path, description: Description) -> Any:
    def attempt(attention: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=description.dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )

    try:
        return attempt("sdpa")
    except ValueError:
        # Some architectures (Gemma 2) know no fused attention; what else was wrong comes up again.
        return attempt("eager")


def _device(folder: Path, name: str | None) -> torch.device:
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    return _accepted(folder, lambda: torch.empty(0, device=name).device)


def _accepted(folder: Path, attempt: Callable[[], T]) -> T:
    """What ``attempt`` gives; what transformers or torch raise at a model becomes ModelUnavailable with the reason."""
    try:
        return attempt()
    except Exception as error:
        reason = str(error).replace(str(folder), folder.name).strip() or type(error).__name__
        message = f"transformers does not accept {folder.name}: {reason.splitlines()[0]}"
        raise ModelUnavailable(message) from error


@torch.no_grad()
def _probe(model: Any, vocabulary: int) -> float:
    """How far batched logits are from the model's own, on a few ids.

    A model whose attention does not know of the paged cache would run, and talk nonsense: nothing else finds out.
    """
    text = [index * 7919 % vocabulary for index in range(_PROBE_PROMPT + _PROBE_ANSWER)]
    prompt, answer = text[:_PROBE_PROMPT], text[_PROBE_PROMPT:]
    ids = torch.tensor([text], device=model.device)
    expected = model(input_ids=ids, use_cache=False).logits[0, _PROBE_PROMPT - 1 : -1].float()
    rows: list[Tensor] = []

    def choose(logits: Tensor, sequences: Sequence[int]) -> list[int]:
        rows.append(logits[0].clone())
        return [answer[len(rows) - 1]]

    batcher = Batcher(model, choose, blocks=4, max_sequences=2, step_tokens=PAGE)
    batcher.add(0, prompt)
    while len(rows) < len(answer):
        if not batcher.step():
            raise RuntimeError("a first request was not scheduled")
    spread = (expected - expected.mean(-1, keepdim=True)).norm()
    return float((torch.stack(rows) - expected).norm() / spread)
