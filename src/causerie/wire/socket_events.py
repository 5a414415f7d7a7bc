"""What clients send on a Responses socket: text frames, each one JSON object with a ``type``, parsed into valid events.

``response.create``, ``response.steer`` and ``stream_id`` are the API's WebSocket mode; ``response.cancel``,
``response.ack`` and ``input_text_buffer.*`` are ours, in the manner of the API's Realtime sockets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import orjson

from causerie.chat.records import Item
from causerie.errors import CauserieError, InvalidRequest, InvalidStreamId, UnsupportedParameter
from causerie.wire.acknowledgement import FIELDS, Shown, take_shown
from causerie.wire.fields import MAX_SHOWN, Fields, kind, parse_object, shown
from causerie.wire.items import new_item_id, parse_items
from causerie.wire.queries import MAX_ID_LENGTH
from causerie.wire.responses_request import MAX_ITEMS, ResponseCall, response_call
from causerie.wire.sampling import Limits

MAX_TEXT = 2**31 - 1
_EDITS = "input_text_buffer."
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Create:
    """``response.create``. Lane None is the one without a name."""

    lane: str | None
    call: ResponseCall


@dataclass(frozen=True, slots=True)
class Steer:
    """``response.steer``."""

    target: str
    given: object
    """Its input as the client wrote it, which it gets back where nothing comes of it."""
    input: tuple[Item, ...]
    fault: str | None = None
    """What is wrong with the input."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """``response.cancel``: of the response with an id, or of whatever is being answered on a lane."""

    response: str | None
    lane: str | None


@dataclass(frozen=True, slots=True)
class Ack:
    """``response.ack``"""

    response: str
    shown: Shown


@dataclass(frozen=True, slots=True)
class Append:
    """``input_text_buffer.append``. ``opening`` is what the buffer's text will be the last message of."""

    text: str
    opening: Create | None


@dataclass(frozen=True, slots=True)
class Truncate:
    """``input_text_buffer.truncate``: the first ``length`` characters stay."""

    length: int


@dataclass(frozen=True, slots=True)
class Clear:
    """``input_text_buffer.clear``"""


@dataclass(frozen=True, slots=True)
class Commit:
    """``input_text_buffer.commit``"""


@dataclass(frozen=True, slots=True)
class Bad:
    """A frame that could not be understood."""

    error: CauserieError
    lane: str | None
    edit: type[Edit] | None = None
    """What it was to be, where it was to change the message that is being typed."""


Edit: TypeAlias = Append | Truncate | Clear | Commit
ClientEvent: TypeAlias = Create | Steer | Cancel | Ack | Edit | Bad


@dataclass(frozen=True, slots=True)
class Reading:
    """How one socket's frames are read."""

    limits: Limits
    conversation: str | None = None
    """What every response of it belongs to, where it is bound to a conversation; then it has no named lanes."""

    def parse(self, text: str) -> ClientEvent:
        """Never raises for what a client can send."""
        lane = None
        # One that cannot be read may have been text: half of a character, say, as a browser cuts it.
        edit: type[Edit] | None = Append if _EDITS in text else None
        try:
            values = parse_object(text, "frame")
            type_ = values.pop("type", None)
            edit = _edit_of(type_)
            parse = _PARSERS.get(type_) if isinstance(type_, str) else None
            if parse is None:
                known = ", ".join(_PARSERS)
                raise InvalidRequest(f"'type' must be one of {known}, not {shown(type_)}.", param="type")
            if "stream_id" in values and type_ in ("response.create", "response.cancel"):
                lane = self._lane(values.pop("stream_id"))
            return parse(self, lane, values)
        except CauserieError as error:
            return Bad(error, lane, edit)

    def _lane(self, value: object) -> str | None:
        if value is None:
            return None
        if self.conversation is not None:
            raise InvalidStreamId("This socket is one conversation and has no lanes.", param="stream_id")
        if not isinstance(value, str) or not _STREAM_ID.fullmatch(value):
            raise InvalidStreamId(
                f"'stream_id' must be 1 to 256 letters, digits, '_', '-' and '.', not {shown(value)}.",
                param="stream_id",
            )
        return value

    def _create(self, lane: str | None, values: dict[str, object]) -> Create:
        return Create(lane, self._call(values))

    def _call(self, values: dict[str, object], *, needs_input: bool = True) -> ResponseCall:
        if values.pop("stream", None) not in (None, True):
            raise InvalidRequest("'stream' is always true on a socket.", param="stream")
        generate = Fields({"generate": values.pop("generate", None)}).boolean("generate", True)
        if self.conversation is not None:
            self._bind(values, self.conversation)
        call = response_call(values, self.limits, needs_input=needs_input and generate, generate=generate)
        if call.background:
            raise UnsupportedParameter(
                "'background' has no place on a socket; 'on_disconnect': \"continue\" lets a response outlive it.",
                param="background",
            )
        continued = call.previous is not None or call.conversation is not None
        if not (generate or continued or call.input or call.instructions):
            raise InvalidRequest("There is nothing to read: give 'input' or 'instructions'.", param="input")
        return call

    def _bind(self, values: dict[str, object], conversation: str) -> None:
        given = values.get("conversation")
        if given not in (None, conversation, {"id": conversation}):
            raise InvalidRequest(
                f"This socket is the conversation '{conversation}'; leave 'conversation' out.", param="conversation"
            )
        values["conversation"] = conversation

    def _steer(self, lane: str | None, values: dict[str, object]) -> Steer:
        fields = Fields(values)
        target = fields.text("previous_response_id", MAX_ID_LENGTH)
        if target is None:
            raise InvalidRequest(
                "'previous_response_id' is missing: the response to steer.", param="previous_response_id"
            )
        given = fields.take("input")
        try:
            orjson.dumps(given)  # It is given back where nothing comes of it.
        except TypeError:
            raise InvalidRequest("'input' is nested too deep.", param="input") from None
        try:
            fields.finish(("previous_response_id", "input"))
            return Steer(target, given, _steering_input(given))
        except CauserieError as error:
            return Steer(target, given, (), error.message)

    def _cancel(self, lane: str | None, values: dict[str, object]) -> Cancel:
        fields = Fields(values)
        response = fields.text("response_id", MAX_ID_LENGTH)
        fields.finish(("response_id", "stream_id"))
        if response is not None and lane is not None:
            raise InvalidRequest("Give 'response_id' or 'stream_id', not both.", param="stream_id")
        return Cancel(response, lane)

    def _ack(self, lane: str | None, values: dict[str, object]) -> Ack:
        fields = Fields(values)
        response, shown = fields.text("response_id", MAX_ID_LENGTH), take_shown(fields)
        fields.finish(("response_id", *FIELDS))
        if response is None:
            raise InvalidRequest("'response_id' is missing: the response that was shown.", param="response_id")
        return Ack(response, shown)

    def _append(self, lane: str | None, values: dict[str, object]) -> Append:
        fields = Fields(values)
        text, response = fields.text("text", MAX_TEXT), fields.take("response")
        fields.finish(("text", "response"))
        if text is None:
            raise InvalidRequest("'text' is missing.", param="text")
        return Append(text, None if response is None else self._opening(response))

    def _opening(self, response: object) -> Create:
        if not isinstance(response, dict):
            raise InvalidRequest(f"'response' must be an object, not {kind(response)}.", param="response")
        values = dict(response)
        try:
            lane = self._lane(values.pop("stream_id", None))
            if values.get("generate") is False:
                raise InvalidRequest("A buffer is read as it comes; leave 'generate' out.", param="generate")
            return Create(lane, self._call(values, needs_input=False))
        except CauserieError as error:
            error.param = "response" if error.param is None else f"response.{error.param}"
            raise

    def opening(self) -> Create:
        """What a buffer is for that does not say."""
        return self._opening({})

    def _truncate(self, lane: str | None, values: dict[str, object]) -> Truncate:
        fields = Fields(values)
        length = fields.integer("length", 0, MAX_TEXT)
        fields.finish(("length",))
        if length is None:
            raise InvalidRequest("'length' is missing: how many characters to keep.", param="length")
        return Truncate(length)

    def _clear(self, lane: str | None, values: dict[str, object]) -> Clear:
        Fields(values).finish()
        return Clear()

    def _commit(self, lane: str | None, values: dict[str, object]) -> Commit:
        Fields(values).finish()
        return Commit()


_PARSERS: Mapping[str, Callable[[Reading, str | None, dict[str, object]], ClientEvent]] = {
    "response.create": Reading._create,
    "response.steer": Reading._steer,
    "response.cancel": Reading._cancel,
    "response.ack": Reading._ack,
    "input_text_buffer.append": Reading._append,
    "input_text_buffer.truncate": Reading._truncate,
    "input_text_buffer.clear": Reading._clear,
    "input_text_buffer.commit": Reading._commit,
}


def _edit_of(type_: object) -> type[Edit] | None:
    """What a frame is to do to the message; what is not known would have changed it."""
    if not isinstance(type_, str) or not type_.startswith(_EDITS):
        return None
    known: dict[str, type[Edit]] = {"truncate": Truncate, "clear": Clear, "commit": Commit}
    return known.get(type_.partition(".")[2], Append)


def _steering_input(value: object) -> tuple[Item, ...]:
    """Messages of the user's, and no others. Raises InvalidRequest."""
    if isinstance(value, str) and value:
        return (Item(new_item_id(), "user", value),)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ITEMS:
        raise InvalidRequest(
            f"'input' must be a text, or an array of 1 to {MAX_ITEMS} messages, not {shown(value)[:MAX_SHOWN]}."
        )
    items = parse_items(value, "input", new_item_id)
    for index, item in enumerate(items):
        if item.role != "user":
            raise InvalidRequest(f"'input[{index}].role' must be 'user', not '{item.role}': only users steer.")
    return items
