"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``, parsed once into a valid call.

Nothing is ignored in silence: a parameter is honoured, or it has a value that changes nothing, or the request is
refused by the parameter's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from causerie.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from causerie.types import (
    ChatPrompt,
    GenerationRequest,
    Message,
    OnDisconnect,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from causerie.wire.disconnect import take_on_disconnect
from causerie.wire.fields import ANY, Fields, Neutral, content_text, kind, parse_object, shown
from causerie.wire.formats import parse_format
from causerie.wire.sampling import (
    MAX_STOP_TOKEN_IDS,
    SAMPLING_NAMES,
    Limits,
    check_model,
    check_token_ids,
    take_logprobs,
    take_n,
    take_sampling,
    take_stop,
)

MAX_MESSAGES = 4096
MAX_ROLE_LENGTH = 64
MAX_NAME_LENGTH = 256

_NEUTRAL: Neutral = {
    "user": (ANY,),
    "metadata": (ANY,),
    "safety_identifier": (ANY,),
    "prompt_cache_key": (ANY,),
    "prompt_cache_retention": (ANY,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "logit_bias": ({},),
    "request_id": (),
    "priority": (0,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "cache_prompt": (True,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "grammar": (),
}
_NEUTRAL_CHAT: Neutral = {
    **_NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "echo": (False,),
}
_NEUTRAL_TEXT: Neutral = {
    **_NEUTRAL,
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "echo": (False,),
    "add_special_tokens": (True,),
}
_NEUTRAL_MESSAGE: Neutral = {
    "tool_calls": ([],),
    "function_call": (),
    "tool_call_id": (),
    "refusal": ("",),
    "audio": (),
    "annotations": ([],),
    "reasoning_content": ("",),
}
_TAKEN = (
    *SAMPLING_NAMES,
    *("model", "stream", "stream_options", "n", "logprobs", "max_completion_tokens", "on_disconnect"),
)
_KNOWN_CHAT = (*_TAKEN, "messages", "top_logprobs", "response_format", *_NEUTRAL_CHAT)
_KNOWN_TEXT = (*_TAKEN, "prompt", "best_of", *_NEUTRAL_TEXT)


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """A body that was understood: what to generate, and how to say it."""

    prompt: Prompt
    sampling: SamplingParams
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    """Whether a stream ends with a chunk that holds the usage."""
    on_disconnect: OnDisconnect | None = None
    """None where the body does not say."""

    def request(self, id_: str) -> GenerationRequest:
        return GenerationRequest(id_, self.prompt, self.sampling, self.n, self.stop)


def parse_chat(body: bytes, limits: Limits) -> CompletionCall:
    """A body of ``/v1/chat/completions``. Raises InvalidRequest, UnsupportedParameter or ModelNotFound."""
    fields = Fields(parse_object(body))
    check_model(fields, limits)
    wanted = fields.boolean("logprobs")
    top = take_logprobs(fields, "top_logprobs", limits)
    if top is not None and not wanted:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    prompt = ChatPrompt(_take_messages(fields))
    format_ = fields.take("response_format")
    schema = None if format_ is None else parse_format(format_, "response_format", flat=False)
    return _take_rest(fields, limits, prompt, (top or 0) if wanted else None, _NEUTRAL_CHAT, _KNOWN_CHAT, schema)


def parse_completion(body: bytes, limits: Limits) -> CompletionCall:
    """A body of ``/v1/completions``. Raises InvalidRequest, UnsupportedParameter or ModelNotFound."""
    fields = Fields(parse_object(body))
    check_model(fields, limits)
    logprobs = take_logprobs(fields, "logprobs", limits)
    prompt = _take_prompt(fields, limits)
    best_of = fields.take("best_of")
    call = _take_rest(fields, limits, prompt, logprobs, _NEUTRAL_TEXT, _KNOWN_TEXT)
    if best_of is not None and (best_of != call.n or type(best_of) is not int):
        raise UnsupportedParameter("'best_of' is not supported, except where it equals 'n'.", param="best_of")
    return call


def _take_rest(
    fields: Fields,
    limits: Limits,
    prompt: Prompt,
    logprobs: int | None,
    neutral: Neutral,
    known: tuple[str, ...],
    schema: str | None = None,
) -> CompletionCall:
    ids = fields.take("stop_token_ids")
    stop_ids = frozenset(() if ids is None else check_token_ids(ids, "stop_token_ids", limits, MAX_STOP_TOKEN_IDS))
    call = CompletionCall(
        prompt=prompt,
        sampling=take_sampling(fields, limits, stop_token_ids=stop_ids, logprobs=logprobs, json_schema=schema),
        n=take_n(fields, limits),
        stop=take_stop(fields),
        stream=fields.boolean("stream"),
        include_usage=_take_include_usage(fields),
        on_disconnect=take_on_disconnect(fields),
    )
    fields.neutral(neutral)
    fields.finish(known)
    return call


def _take_include_usage(fields: Fields) -> bool:
    value = fields.take("stream_options")
    if value is None:
        return False
    if not isinstance(value, dict):
        fields.refuse("stream_options", "an object", value)
    options = Fields(value, "stream_options.")
    include_usage = options.boolean("include_usage")
    options.neutral({"include_obfuscation": (False,), "continuous_usage_stats": (False,)})
    options.finish(("include_usage",))
    return include_usage


def _take_messages(fields: Fields) -> tuple[Message, ...]:
    values = fields.take("messages")
    if values is None:
        raise InvalidRequest("'messages' is missing: an array of at least one message.", param="messages")
    if not isinstance(values, list):
        fields.refuse("messages", "an array", values)
    if not 0 < len(values) <= MAX_MESSAGES:
        raise InvalidRequest(f"'messages' must hold 1 to {MAX_MESSAGES} messages, not {len(values)}.", param="messages")
    return tuple(_message(value, f"messages[{index}]") for index, value in enumerate(values))


def _message(value: object, path: str) -> Message:
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{path}' must be an object, not {kind(value)}.", param=path)
    fields = Fields(value, path + ".")
    role = fields.text("role", MAX_ROLE_LENGTH)
    if not role:
        raise InvalidRequest(f"'{path}.role' is missing.", param=f"{path}.role")
    if role in ("tool", "function"):
        raise UnsupportedParameter(f"'{path}.role': the role '{role}' is not supported.", param=f"{path}.role")
    content = content_text(fields.take("content"), f"{path}.content", _part)
    name = fields.text("name", MAX_NAME_LENGTH)
    fields.neutral(_NEUTRAL_MESSAGE)
    fields.finish(("role", "content", "name"))
    # The API's later name for the same thing; models' templates know the earlier one.
    return Message("system" if role == "developer" else role, content, name)


def _part(value: object, path: str) -> str:
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{path}' must be an object, not {kind(value)}.", param=path)
    kind_of_part = value.get("type")
    if kind_of_part != "text":
        raise UnsupportedParameter(
            f"'{path}.type' must be 'text', not {shown(kind_of_part)}: this server reads text only.",
            param=f"{path}.type",
        )
    text = value.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"'{path}.text' must be a string, not {kind(text)}.", param=f"{path}.text")
    return text


def _take_prompt(fields: Fields, limits: Limits) -> Prompt:
    value = fields.take("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        if not value:
            raise InvalidRequest("'prompt' is empty: there is nothing to continue.", param="prompt")
        return TextPrompt(value)
    if value is None:
        raise InvalidRequest("'prompt' is missing.", param="prompt")
    if not isinstance(value, list) or not value:
        fields.refuse("prompt", "a string or a non-empty array of token ids", value)
    if isinstance(value[0], str | list):
        raise UnsupportedParameter(
            "Several prompts in one request are not supported; send one request for each.", param="prompt"
        )
    if len(value) >= limits.context_window:
        # Before its ids are looked at one by one, which for a long list would take a while.
        raise ContextLengthExceeded(len(value), limits.context_window, param="prompt")
    return TokenPrompt(check_token_ids(value, "prompt", limits, limits.context_window))
