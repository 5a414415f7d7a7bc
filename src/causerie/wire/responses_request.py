"""Bodies of ``POST /v1/responses``, parsed once into a valid call.

As everywhere: a parameter is honoured, or has a value that changes nothing, or is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from causerie.chat.records import Item
from causerie.errors import InvalidRequest
from causerie.types import ChatPrompt, GenerationRequest, Message, OnDisconnect, SamplingParams
from causerie.wire.disconnect import check_in_background, take_on_disconnect
from causerie.wire.fields import ANY, Fields, Neutral, parse_object
from causerie.wire.formats import parse_format
from causerie.wire.items import NewId, message, new_item_id, parse_items
from causerie.wire.options import take_metadata
from causerie.wire.queries import LOGPROBS, MAX_ID_LENGTH, check_includable
from causerie.wire.sampling import (
    MAX_STOP_TOKEN_IDS,
    SAMPLING_NAMES,
    Limits,
    check_model,
    check_token_ids,
    take_logprobs,
    take_sampling,
    take_stop,
)

MAX_ITEMS = 4096
MAX_INCLUDE = 64
MAX_TAG_LENGTH = 512
"""Of the strings by which a client marks a request for itself."""

_NEUTRAL: Neutral = {
    "prompt_cache_retention": (ANY,),
    "prompt_cache_options": ({"mode": "implicit"},),
    "service_tier": ("auto", "default"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "max_tool_calls": (),
    "prompt": (),
    "moderation": (),
    "image": (),
    "access_programs": (),
    "context_management": ([],),
    "background_options": ({"completion_window": "soonest"},),
    # Preparing a response without an answer belongs to the socket.
    "generate": (True,),
}
_NEUTRAL_REASONING: Neutral = {
    "effort": ("none",),
    "summary": ("auto",),
    "generate_summary": ("auto",),
    "context": ("auto",),
    "mode": ("standard",),
}
_EXTENSIONS = (*(name for name in SAMPLING_NAMES if name != "max_tokens"), "on_disconnect")
_ECHOED = (
    *_EXTENSIONS,
    *("max_output_tokens", "top_logprobs", "truncation", "metadata", "store", "tool_choice", "parallel_tool_calls"),
    *("user", "safety_identifier", "prompt_cache_key"),
)
_TAKEN = (
    *_ECHOED,
    *("model", "input", "instructions", "previous_response_id", "conversation", "background", "include", "text"),
    *("stream", "stream_options", "reasoning"),
)
_ELSEWHERE = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
}
"""What chat completions call it, and what it is called here."""


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A body that was understood: what to answer, what it continues, and what is kept of it."""

    input: tuple[Item, ...]
    instructions: str | None
    previous: str | None
    conversation: str | None
    store: bool
    background: bool
    stream: bool
    overflow: Literal["error", "drop_oldest"]
    sampling: SamplingParams
    stop: tuple[str, ...]
    on_disconnect: OnDisconnect | None
    """None where the request does not say: a response in the background then goes on, another is cancelled."""
    generate: bool
    """False: the prompt is read, and nothing is answered."""
    parameters: Mapping[str, object]
    """What the request named, as the API echoes it (``ResponseRecord.parameters``)."""

    def prompt(self, history: Sequence[Item] = ()) -> ChatPrompt:
        """What the model reads: the instructions, what came before, and the input."""
        head = () if self.instructions is None else (Message("system", self.instructions),)
        return ChatPrompt((*head, *map(message, history), *map(message, self.input)), self.overflow, "input")

    def request(self, id_: str, owner: str, history: Sequence[Item] = ()) -> GenerationRequest:
        """Raises InvalidRequest where there is nothing to answer."""
        prompt, default = self.prompt(history), OnDisconnect(None if self.background else 0.0)
        if not prompt.messages:
            raise InvalidRequest("'input' is empty, and so is what it continues: give a message.", param="input")
        return GenerationRequest(
            id=id_,
            prompt=prompt,
            sampling=self.sampling,
            stop=self.stop,
            owner=owner,
            on_disconnect=self.on_disconnect or default,
            format_field="text.format",
            generate=self.generate,
        )


def parse_response(body: bytes, limits: Limits, new_id: NewId = new_item_id) -> ResponseCall:
    """A body of ``/v1/responses``. Raises InvalidRequest, UnsupportedParameter or ModelNotFound."""
    return response_call(parse_object(body), limits, new_id)


def response_call(
    values: Mapping[str, object],
    limits: Limits,
    new_id: NewId = new_item_id,
    *,
    needs_input: bool = True,
    generate: bool = True,
) -> ResponseCall:
    """The same of a body's members. Without ``needs_input`` there may be none although nothing is continued."""
    fields = Fields(values)
    check_model(fields, limits)
    previous, conversation = _take_context(fields)
    store, background = fields.boolean("store", True), fields.boolean("background")
    if not store and (background or conversation is not None):
        name = "background" if background else "conversation"
        raise InvalidRequest(f"'{name}' needs the response to be kept; leave out 'store': false.", param="store")
    text, schema = _take_text(fields)
    parameters = _echo(values) | {"text": text}
    _take_reasoning(fields)
    take_metadata(fields)
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        fields.text(name, MAX_TAG_LENGTH)
    ids = fields.take("stop_token_ids")
    stop_ids = () if ids is None else check_token_ids(ids, "stop_token_ids", limits, MAX_STOP_TOKEN_IDS)
    call = ResponseCall(
        input=_take_input(fields, new_id, needed=needs_input and previous is None and conversation is None),
        instructions=_take_instructions(fields),
        previous=previous,
        conversation=conversation,
        store=store,
        background=background,
        stream=_take_stream(fields),
        overflow=_take_truncation(fields),
        sampling=take_sampling(
            fields,
            limits,
            stop_token_ids=frozenset(stop_ids),
            logprobs=_take_logprobs(fields, limits),
            json_schema=schema,
            limit_names=("max_output_tokens",),
        ),
        stop=take_stop(fields),
        on_disconnect=take_on_disconnect(fields),
        generate=generate,
        parameters=parameters,
    )
    if background and call.on_disconnect is not None:
        check_in_background(call.on_disconnect)
    fields.neutral(_NEUTRAL)
    fields.finish((*_TAKEN, *_NEUTRAL), _ELSEWHERE)
    return call


def _echo(values: Mapping[str, object]) -> dict[str, object]:
    """What the API repeats of a body. It is checked where it is taken."""
    return {name: values[name] for name in _ECHOED if values.get(name) is not None}


def _take_context(fields: Fields) -> tuple[str | None, str | None]:
    previous = fields.text("previous_response_id", MAX_ID_LENGTH)
    conversation = fields.take("conversation")
    if isinstance(conversation, dict):
        inner = Fields(conversation, "conversation.")
        conversation = inner.take("id")
        inner.finish(("id",))
        if conversation is None:
            raise InvalidRequest("'conversation.id' is missing.", param="conversation.id")
    if conversation is not None and (not isinstance(conversation, str) or len(conversation) > MAX_ID_LENGTH):
        fields.refuse("conversation", 'an id or {"id": …}', conversation)
    if previous is not None and conversation is not None:
        raise InvalidRequest(
            "'previous_response_id' and 'conversation' are two ways to continue; give one.",
            param="previous_response_id",
        )
    return previous, conversation


def _take_input(fields: Fields, new_id: NewId, *, needed: bool) -> tuple[Item, ...]:
    value = fields.take("input")
    if isinstance(value, str):
        return (Item(new_id(), "user", value),)
    if value is None:
        value = []
    elif not isinstance(value, list):
        fields.refuse("input", "a string or an array of messages", value)
    if needed and not value:
        raise InvalidRequest("'input' is missing: a string, or an array of at least one message.", param="input")
    if len(value) > MAX_ITEMS:
        raise InvalidRequest(f"'input' has {len(value)} items; at most {MAX_ITEMS} are allowed.", param="input")
    return parse_items(value, "input", new_id)


def _take_instructions(fields: Fields) -> str | None:
    value = fields.take("instructions")
    if value is not None and not isinstance(value, str):
        fields.refuse("instructions", "a string", value)
    return value


def _take_stream(fields: Fields) -> bool:
    options = _take_object(fields, "stream_options")
    options.neutral({"include_obfuscation": (False,)})
    options.finish()
    return fields.boolean("stream")


def _take_truncation(fields: Fields) -> Literal["error", "drop_oldest"]:
    value = fields.take("truncation")
    if value not in (None, "auto", "disabled"):
        fields.refuse("truncation", "auto or disabled", value)
    return "drop_oldest" if value == "auto" else "error"


def _take_text(fields: Fields) -> tuple[dict[str, object], str | None]:
    """``text`` as the API echoes it, and the JSON schema that it asks for."""
    text = _take_object(fields, "text")
    format_ = text.take("format")
    if format_ is None:
        format_ = {"type": "text"}
    schema = parse_format(format_, text.param("format"), flat=True)
    text.neutral({"verbosity": ("medium",)})
    text.finish(("format", "verbosity"))
    return {"format": format_, "verbosity": "medium"}, schema


def _take_reasoning(fields: Fields) -> None:
    reasoning = _take_object(fields, "reasoning")
    reasoning.neutral(_NEUTRAL_REASONING)
    reasoning.finish(_NEUTRAL_REASONING)


def _take_logprobs(fields: Fields, limits: Limits) -> int | None:
    include = fields.take("include")
    if include is not None and (not isinstance(include, list) or len(include) > MAX_INCLUDE):
        fields.refuse("include", f"an array of at most {MAX_INCLUDE} strings", include)
    for value in include or ():
        check_includable(value)
    top = take_logprobs(fields, "top_logprobs", limits)
    if LOGPROBS in (include or ()):
        return top or 0
    if top:
        raise InvalidRequest(f"'top_logprobs' needs 'include': [\"{LOGPROBS}\"].", param="top_logprobs")
    return None


def _take_object(fields: Fields, name: str) -> Fields:
    """A member that is an object, its own members to be taken; an empty one where it is absent."""
    value = fields.take(name)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        fields.refuse(name, "an object", value)
    return Fields(value, f"{fields.param(name)}.")
