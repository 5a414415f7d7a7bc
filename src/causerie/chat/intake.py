"""From a request to what an engine can take: its parameters checked, its prompt as ids, its output limit fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from causerie.chat.conversation import without_oldest_turn
from causerie.config import Settings
from causerie.engines.base import EngineInfo
from causerie.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from causerie.text.growing import Settled
from causerie.text.model import TextModel
from causerie.text.turns import ChatEncoding, Seen
from causerie.types import ChatPrompt, GenerationRequest, Message, Prompt, SamplingParams, TextPrompt

ENCODE_INLINE = 4096
"""Prompts of fewer characters are encoded on the event loop: handing them to a thread costs more."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt's ids, and how many of its oldest messages were left out to make room for an answer."""

    ids: list[int]
    dropped_messages: int = 0
    chat: ChatEncoding | None = None
    """Of a conversation: how it was encoded, and whether that begins with what the model has seen of it."""


class Intake:
    """What one model and engine can take. Its methods may be called from any thread."""

    def __init__(self, text: TextModel, info: EngineInfo, settings: Settings) -> None:
        self._text = text
        self._info = info
        self._begun: dict[tuple[Message, ...], Settled] = {}
        self._max_output_tokens = settings.max_output_tokens
        self._default_max_tokens = settings.max_tokens

    def check(self, request: GenerationRequest) -> None:
        """Raises UnsupportedParameter or InvalidRequest for what can be told without the prompt."""
        sampling, info = request.sampling, self._info
        for field in fields(SamplingParams):
            if field.name == "max_tokens" or field.name in info.parameters:
                continue
            if getattr(sampling, field.name) != field.default:
                name = request.format_field if field.name == "json_schema" else field.name
                raise UnsupportedParameter(
                    f"The {info.name} engine cannot honour '{name}' with this model. Leave it out, or serve it with "
                    "another engine.",
                    param=name,
                )
        if sampling.json_schema is not None:
            _check_ends(request)
        if sampling.logprobs is not None and sampling.logprobs > info.top_logprobs:
            raise UnsupportedParameter(
                f"The {info.name} engine reports at most {info.top_logprobs} alternatives per token, not "
                f"{sampling.logprobs}; the sampled token's own log-probability needs none.",
                param="top_logprobs",
            )
        limit = self._max_output_tokens
        if limit is not None and sampling.max_tokens > limit:
            raise InvalidRequest(
                f"'max_tokens' is {sampling.max_tokens}, but this server allows at most {limit}.", param="max_tokens"
            )

    def encode(self, request: GenerationRequest, seen: Seen | None = None) -> Encoded:
        """The prompt as ids, which begin with those of ``seen`` where the text does.

        Raises InvalidRequest, or ContextLengthExceeded for more than the window.

        Where the prompt's oldest turns may be left out, that is done until a quarter of the window, or the
        output limit if it is less, is free for the answer; the last turn alone may use that room.
        """
        try:
            return self._encode(request, seen)
        except ContextLengthExceeded as error:
            error.param = _field(request.prompt)
            raise

    def _encode(self, request: GenerationRequest, seen: Seen | None) -> Encoded:
        prompt = request.prompt
        if not isinstance(prompt, ChatPrompt):
            return Encoded(self._text.encode(prompt, limit=self._info.context_window))

        def encode(shorter: ChatPrompt, limit: int) -> Encoded:
            dropped = len(prompt.messages) - len(shorter.messages)
            chat = self._text.encode_after(shorter, seen, self._begun.get(shorter.messages), limit=limit)
            return Encoded(chat.ids, dropped, chat)

        return self._fitting(prompt, request.sampling.max_tokens, encode)

    def begin(self, prompt: ChatPrompt, settled: Settled) -> None:
        """Until ``forget``, let ``encode`` not encode again what was settled of ``prompt``."""
        self._begun[prompt.messages] = settled

    def forget(self, prompt: ChatPrompt) -> None:
        self._begun.pop(prompt.messages, None)

    def settled(self, prompt: ChatPrompt | TextPrompt, before: Settled | None) -> Settled | None:
        """The ids that ``prompt`` begins with however its text goes on (``TextModel.settled``).

        None where that text is nothing that ``encode`` would take.
        """
        window = self._info.context_window
        try:
            if isinstance(prompt, TextPrompt):
                return self._text.settled(prompt, before, limit=window)
            return self._fitting(
                prompt,
                self._default_max_tokens,
                lambda fitting, limit: self._text.settled(fitting, before, limit=limit),
            )
        except InvalidRequest:
            return None

    def whole(self, prompt: ChatPrompt | TextPrompt, settled: Settled) -> Settled | None:
        """All of ``prompt`` as it stands, of which that much is settled. None where it has no template."""
        if isinstance(prompt, TextPrompt):
            return None
        try:
            chat = self._fitting(
                prompt,
                self._default_max_tokens,
                lambda fitting, limit: self._text.encode_after(fitting, None, settled, limit=limit),
            )
        except InvalidRequest:
            return None
        return Settled(chat.ids, chat.rendered.text)

    def _fitting(self, prompt: ChatPrompt, max_tokens: int, encode: Callable[[ChatPrompt, int], T]) -> T:
        window = self._info.context_window
        if prompt.overflow == "error":
            return encode(prompt, window)
        reserve = min(max_tokens, window // 4)
        messages = prompt.messages
        while True:
            shorter = without_oldest_turn(messages)
            try:
                return encode(replace(prompt, messages=messages), window if shorter is None else window - reserve)
            except ContextLengthExceeded:
                if shorter is None:
                    raise
                messages = shorter

    def fit(self, request: GenerationRequest, prompt_tokens: int) -> SamplingParams:
        """The sampling parameters with the output limit lowered to what the context window leaves.

        Raises ContextLengthExceeded where that is nothing, InvalidRequest where it is less than ``min_tokens``.
        """
        window = self._info.context_window
        left = window - prompt_tokens
        if left < 1:
            raise ContextLengthExceeded(prompt_tokens, window, param=_field(request.prompt))
        sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, left))
        if sampling.min_tokens > sampling.max_tokens:
            raise InvalidRequest(
                f"'min_tokens' is {sampling.min_tokens}, but at most {sampling.max_tokens} can be generated here.",
                param="min_tokens",
            )
        return sampling


def _check_ends(request: GenerationRequest) -> None:
    """Refuse what would end an answer that is held to a schema elsewhere than the schema does."""
    for name in ("min_tokens", "ignore_eos", "stop_token_ids"):
        if getattr(request.sampling, name):
            raise UnsupportedParameter(
                f"'{name}' is not supported beside '{request.format_field}': the schema says where the answer ends.",
                param=name,
            )


def _field(prompt: Prompt) -> str:
    return prompt.field if isinstance(prompt, ChatPrompt) else "prompt"


def characters(prompt: Prompt) -> int:
    """How much text there is to encode."""
    match prompt:
        case ChatPrompt(messages):
            return sum(len(message.content) for message in messages)
        case TextPrompt(text):
            return len(text)
        case _:
            return 0
