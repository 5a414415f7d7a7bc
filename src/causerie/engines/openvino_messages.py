"""What the OpenVINO engine and its runtime's process say to each other: a ``Setup``, then ``Step`` and ``Stepped``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from causerie.engines.base import EndReason
from causerie.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Setup:
    """What the pipeline is made of. ``blocks`` bounds its KV cache, ``batched_tokens`` what one step may compute."""

    folder: str
    blocks: int
    batched_tokens: int
    max_sequences: int
    eos_token_ids: frozenset[int]
    properties: dict[str, str]
    vocabulary: Sequence[bytes] | None = None
    """What each id spells, where answers may be held to a schema."""


class Add(NamedTuple):
    sequence: int
    prompt: Sequence[int]
    sampling: SamplingParams
    grammar: str | None = None
    """In xgrammar's EBNF, what text may come; only where ``sampling`` names no schema."""


class Step(NamedTuple):
    """One step: first end what is cancelled, then take in what is new, then compute."""

    cancelled: Sequence[int]
    added: Sequence[Add]


class Said(NamedTuple):
    """What one sequence gained, or why it ended; see ``Update``."""

    sequence: int
    ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    ended: EndReason | None = None
    detail: str = ""


class Stepped(NamedTuple):
    said: list[Said]
    kv_usage: float
    """The share of the KV cache that is in use, from 0 to 1."""
