"""The contract between the service and whatever computes tokens. Token ids in, token ids out; never text.

An engine owns a thread. ``submit``, ``prefill`` and ``cancel`` may be called from any thread, never block on
the model and never raise for what a user sent: the outcome comes through ``deliver``. ``deliver`` is called on
the engine's thread, once per step, with what every sequence gained in that step; it must return quickly.

For each sequence that was submitted or prefilled the engine delivers exactly one ``Update`` with ``ended``
set, and nothing after it, whatever happens: a cancelled sequence, an engine that stops or breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeAlias

from causerie.types import SamplingParams, TokenLogprob


class EndReason(StrEnum):
    """Why the engine is done with a sequence."""

    STOP = "stop"
    """It sampled its end-of-text or one of ``stop_token_ids``; that token is the last of ``ids``."""
    LENGTH = "length"
    """``max_tokens`` were sampled."""
    PREFILLED = "prefilled"
    """A ``prefill`` is done: the ids are in the prefix cache."""
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    """No KV-cache block was left. A failure, never a finish."""
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Update:
    """What one sequence gained in one step."""

    sequence: int
    ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
    """One for each of ``ids`` where they were asked for, else empty."""
    ended: EndReason | None = None
    detail: str = ""
    """For ``ERROR``: one line for the user, with no path and no traceback."""
    cached_tokens: int | None = None
    """With a sequence's first ids, or with ``PREFILLED``: prompt tokens reused from the prefix cache.

    None if the engine does not know.
    """


Deliver: TypeAlias = Callable[[Sequence[Update]], None]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and can do. Known before ``start``."""

    name: str
    context_window: int
    """Prompt and answer together, in tokens."""
    kv_tokens: int
    """Size of the KV cache, in tokens; always set and always finite."""
    max_sequences: int
    """Sequences that it can run at once."""
    parameters: frozenset[str]
    """Names of the ``SamplingParams`` fields that it honours."""
    top_logprobs: int = 0
    """The most alternatives per token it can report; 0 where it knows only the sampled token's probability."""
    prefix_block: int = 0
    """Tokens are reused in whole blocks of this size; 0 where nothing is reused, so that ``prefill`` is useless."""
    takes_turns: bool = False
    """It reads long prompts in pieces by itself, in turn with others."""
    partial_blocks: bool = False
    """Whether a prompt that was read before is reused to its end, inside a block, where the next one goes on from it.

    ``cached`` does not count that.
    """

    def sequence_kv_tokens(self, prompt_tokens: int, max_tokens: int) -> int:
        """What one sequence may come to hold of the KV cache, in whole blocks."""
        block = self.prefix_block or 1
        return -(-(prompt_tokens + max_tokens) // block) * block


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. ``kv_usage`` is a share from 0 to 1, and not a number where it is not known."""

    running: int = 0
    kv_usage: float = 0.0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What every engine that loads a model is given: its folder, what is known of it, and the bounds."""

    folder: Path
    context_window: int
    """Prompt and answer together, in tokens."""
    eos_token_ids: frozenset[int]
    """All ids that end an answer."""
    kv_bytes_per_token: int
    """What a token takes in the KV cache at two bytes per element; the engine allows for its own width."""
    kv_cache_bytes: int
    max_sequences: int
    vocabulary: Callable[[], Sequence[bytes]] | None = None
    """What each id of the model's vocabulary spells, nothing for control tokens: what an answer is held to a schema by.
    None where that depends on a token's neighbours."""


class Engine(Protocol):
    """See the module's docstring for the rules that hold for every method."""

    @property
    def info(self) -> EngineInfo: ...

    def start(self, deliver: Deliver) -> None:
        """Begin stepping on the engine's own thread; returns when it can take work.

        Raises ModelUnavailable if the model cannot be loaded. Called once.
        """
        ...

    def submit(self, sequence: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        """Generate after ``prompt``. ``sequence`` is a number not used before."""
        ...

    def prefill(self, sequence: int, prompt: Sequence[int], *, gently: bool = False) -> None:
        """Read ``prompt`` into the prefix cache and sample nothing that is delivered; ends as ``PREFILLED``.

        The caller decides the pieces: each call is given the whole prefix so far, and only what is new of it
        costs time. ``gently``: where sequences are generating, over as many steps as it has new tokens, so that
        theirs take hardly longer. Whether that can be done depends on the engine and on the tokens; if not, it is
        read as any other.
        """
        ...

    def cached(self, prompt: Sequence[int]) -> int:
        """How many tokens at the head of ``prompt`` are probably in the prefix cache, in whole blocks.

        A guess, for scheduling only; what was reused for certain comes as ``Update.cached_tokens``.
        """
        ...

    def cancel(self, sequence: int) -> None:
        """End a sequence within one step. Unknown or ended numbers are ignored."""
        ...

    def stats(self) -> EngineStats: ...

    def stop(self) -> None:
        """End every sequence as CANCELLED, then the thread. Returns when it has ended; safe to call twice."""
        ...
