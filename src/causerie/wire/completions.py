"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``, parsed once into a valid call.

Nothing is ignored in silence: a parameter is honoured, or it has a value that changes nothing, or the request is
refused by the parameter's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from causerie.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, UnsupportedParameter
from causerie.types import ChatPrompt, GenerationRequest, Message, Prompt, SamplingParams, TextPrompt, TokenPrompt
from causerie.wire.fields import Fields, kind, parse_object, shown
from causerie.wire.formats import parse_format
from causerie.wire.sampling import (
    MAX_LOGPROBS,
    MAX_STOP_TOKEN_IDS,
    SAMPLING_NAMES,
    Limits,
    check_token_ids,
    take_n,
    take_sampling,
    take_stop,
)

MAX_MESSAGES = 4096
MAX_PARTS = 4096
"""Parts of one message's content."""
MAX_ROLE_LENGTH = 64
MAX_NAME_LENGTH = 256
MAX_MODEL_LENGTH = 1024

ANY = object()
"""In a table of neutral values: whatever it is, it changes nothing here."""

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
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
_NEUTRAL_CHAT: Mapping[str, tuple[object, ...]] = {
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
_NEUTRAL_TEXT: Mapping[str, tuple[object, ...]] = {
    **_NEUTRAL,
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "echo": (False,),
    "add_special_tokens": (True,),
}
_NEUTRAL_MESSAGE: Mapping[str, tuple[object, ...]] = {
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
    *("model", "stream", "stream_options", "n", "logprobs", "top_logprobs", "max_completion_tokens"),
    *("messages", "prompt", "best_of", "response_format"),
)


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

    def request(self, id_: str) -> GenerationRequest:
        return GenerationRequest(id_, self.prompt, self.sampling, self.n, self.stop)


def parse_chat(body: bytes, limits: Limits) -> CompletionCall:
    """A body of ``/v1/chat/completions``. Raises InvalidRequest, UnsupportedParameter or ModelNotFound."""
    fields = Fields(parse_object(body))
    _check_model(fields, limits)
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if top is not None and not wanted:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    prompt = ChatPrompt(_take_messages(fields))
    format_ = fields.take("response_format")
    schema = None if format_ is None else parse_format(format_, "response_format", flat=False)
    return _take_rest(fields, limits, prompt, (top or 0) if wanted else None, _NEUTRAL_CHAT, schema)


def parse_completion(body: bytes, limits: Limits) -> CompletionCall:
    """A body of ``/v1/completions``. Raises InvalidRequest, UnsupportedParameter or ModelNotFound."""
    fields = Fields(parse_object(body))
    _check_model(fields, limits)
    logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    prompt = _take_prompt(fields, limits)
    best_of = fields.take("best_of")
    call = _take_rest(fields, limits, prompt, logprobs, _NEUTRAL_TEXT)
    if best_of is not None and (best_of != call.n or type(best_of) is not int):
        raise UnsupportedParameter("'best_of' is not supported, except where it equals 'n'.", param="best_of")
    return call


def _take_rest(
    fields: Fields,
    limits: Limits,
    prompt: Prompt,
    logprobs: int | None,
    neutral: Mapping[str, tuple[object, ...]],
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
    )
    _check_neutral(fields, neutral)
    fields.finish((*_TAKEN, *neutral))
    return call


def _check_model(fields: Fields, limits: Limits) -> None:
    model = fields.text("model", MAX_MODEL_LENGTH)
    if model not in (None, "", "default", limits.model):
        raise ModelNotFound(f"The model {shown(model)} is not served here. Served: '{limits.model}'.", param="model")


def _take_include_usage(fields: Fields) -> bool:
    value = fields.take("stream_options")
    if value is None:
        return False
    if not isinstance(value, dict):
        fields.refuse("stream_options", "an object", value)
    options = Fields(value, "stream_options.")
    include_usage = options.boolean("include_usage")
    _check_neutral(options, {"include_obfuscation": (False,), "continuous_usage_stats": (False,)})
    options.finish(("include_usage",))
    return include_usage


def _check_neutral(fields: Fields, neutral: Mapping[str, tuple[object, ...]]) -> None:
    """Take what is known and changes nothing; refuse what is known and would change something."""
    for name, values in neutral.items():
        value = fields.take(name)
        if value is None or ANY in values or any(_same(value, accepted) for accepted in values):
            continue
        param = fields.param(name)
        only = f", except as {' or '.join(orjson.dumps(accepted).decode() for accepted in values)}" if values else ""
        raise UnsupportedParameter(f"'{param}' is not supported by this server{only}.", param=param)


def _same(value: object, accepted: object) -> bool:
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)


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
    content = _content(fields.take("content"), f"{path}.content")
    name = fields.text("name", MAX_NAME_LENGTH)
    _check_neutral(fields, _NEUTRAL_MESSAGE)
    fields.finish(("role", "content", "name"))
    # The API's later name for the same thing; models' templates know the earlier one.
    return Message("system" if role == "developer" else role, content, name)


def _content(value: object, param: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise InvalidRequest(f"'{param}' is missing.", param=param)
    if not isinstance(value, list) or len(value) > MAX_PARTS:
        raise InvalidRequest(
            f"'{param}' must be a string or an array of at most {MAX_PARTS} parts, not {kind(value)}.", param=param
        )
    return "".join(_part(part, f"{param}[{index}]") for index, part in enumerate(value))


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
