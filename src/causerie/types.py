"""Values that every floor shares: messages, prompts, sampling, usage and the events of a response.

Everything here is immutable and knows no tokenizer, engine, protocol or clock. Durations are seconds,
counts are tokens, token ids are ``int``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from causerie.errors import CauserieError


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``role`` and ``content`` are untrusted text, whatever they spell."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation to be rendered through the model's own template, ready for the assistant's turn.

    ``overflow`` says what happens when it does not fit the context window: an error, or the oldest turns are
    left out whole (``Started.dropped_messages`` says how many messages went).
    """

    messages: tuple[Message, ...]
    overflow: Literal["error", "drop_oldest"] = "error"
    field: str = "messages"
    """What the client's protocol calls it, for errors."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text that the model continues as it stands, with no template."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids that the model continues as they stand. The one prompt that may hold control tokens."""

    ids: tuple[int, ...]


Prompt: TypeAlias = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next tokens of one sequence are chosen.

    Ranges are checked where a request is parsed (``wire/``); an engine that cannot honour a field which is
    not at its default refuses the request by that field's name (``EngineInfo.parameters``).

    Names and meanings are vLLM's and the OpenAI API's: ``temperature`` 0 is greedy; ``top_k`` 0 is no limit;
    ``max_tokens`` counts every sampled token, the end-of-text token too; ``logprobs`` is None for none, 0 for
    the sampled token's alone, k for the k most likely beside it. ``json_schema`` is what the whole answer is held to,
    unless ``max_tokens`` or a stop string ends it before: JSON text of the language of ``causerie.wire.json_schema``.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    json_schema: str | None = None


@dataclass(frozen=True, slots=True)
class OnDisconnect:
    """What becomes of a response that nobody reads any more.

    It is cancelled when nobody has come back after ``grace`` seconds: at once with 0, never with None.
    """

    grace: float | None = 0.0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One response wanted: a prompt, how to sample, ``n`` choices, and the strings that end a choice.

    ``owner`` is the name of the API key that it came with; ids are unique for each owner. ``sampling.max_tokens`` is
    what the client asked for, or the server's default; the service lowers it to what the context window leaves.
    Stop strings never appear in the text.
    """

    id: str
    prompt: Prompt
    sampling: SamplingParams
    n: int = 1
    stop: tuple[str, ...] = ()
    owner: str = ""
    on_disconnect: OnDisconnect = OnDisconnect()
    format_field: str = "response_format"
    """What the client's protocol calls what becomes ``sampling.json_schema``, for errors."""
    generate: bool = True
    """False: the prompt is read, and nothing is answered to it."""


class FinishReason(StrEnum):
    """Why a choice ended. The values are the OpenAI API's where it has one."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    STEERED = "steered"
    """It was ended so that another answer goes on from it with more input."""
    ERROR = "error"


class CancelCause(StrEnum):
    """Who ended a response before its own end; the label of the cancellation metric."""

    CLIENT = "client"
    """The last reader left: a closed tab, a dropped connection, Ctrl-C."""
    STOPPED = "stopped"
    """Somebody asked for it to stop, and may still be reading."""
    STEERED = "steered"
    """More input came for it; another response goes on from what it had said."""
    SHUTDOWN = "shutdown"
    SLOW_READER = "slow_reader"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response. ``cached_tokens`` is None where the engine does not say what it reused.

    ``cache_miss`` says why a turn that continues a conversation did not find all that was computed of it (the values
    are ``text.turns.Miss``'s); None where it did, and where nothing was continued.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    cache_miss: str | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token's natural-log probability, and the most likely tokens at its place, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits for its turn; ``position`` 0 is next. ``estimated_wait`` is in seconds, from recent turns."""

    position: int
    estimated_wait: float = 0.0


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """``read`` of the prompt's ``total`` tokens have been read by the model."""

    read: int
    total: int


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has the whole request; text follows."""

    prompt_tokens: int
    dropped_messages: int = 0
    """How many of the oldest messages (after a leading system message) were left out to fit the window."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one choice gained in a step.

    ``text`` holds whole characters only and may be empty (a character whose bytes are not complete, text held
    back because a stop string may have begun). ``tokens`` counts the sampled tokens behind it.
    ``finish_reason`` is set on a choice's last part.
    """

    index: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text, one part for each choice that gained something, by ascending ``index``."""

    parts: tuple[Part, ...]
    acknowledged: int | None = None
    """Characters of the text before it that the client had said to have shown by then, if it says so at all."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The response ended by itself or was cancelled; ``reasons`` has one entry for each choice.

    ``kept`` is how many characters of the text count as said, where that is not all: a client that acknowledges what
    it has shown was interrupted.
    """

    reasons: tuple[FinishReason, ...]
    usage: Usage
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The response ended because something went wrong; what was delivered before it stands, or ``kept`` of it."""

    error: CauserieError
    usage: Usage = field(default_factory=Usage)
    kept: int | None = None


Event: TypeAlias = Queued | PrefillProgress | Started | TextDelta | Finished | Failed
"""What a ``ResponseLog`` holds. Exactly one ``Finished`` or ``Failed``, and it is the last."""
