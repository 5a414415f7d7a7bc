"""Plain text in, plain text out: the query parameters and the body of ``POST /`` and ``PUT /``."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import orjson

from causerie.errors import InvalidRequest, UnsupportedParameter
from causerie.types import (
    ChatPrompt,
    Finished,
    GenerationRequest,
    Message,
    OnDisconnect,
    SamplingParams,
    TextDelta,
    TextPrompt,
)
from causerie.wire import sse
from causerie.wire.disconnect import take_on_disconnect
from causerie.wire.fields import QueryFields, query_pairs
from causerie.wire.openai import usage_object
from causerie.wire.queries import MAX_ID_LENGTH
from causerie.wire.sampling import (
    MAX_STOP_TOKEN_IDS,
    SAMPLING_NAMES,
    Limits,
    check_stops,
    check_token_ids,
    take_sampling,
)

TEXT_TYPES = ("text/plain", "text/markdown", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types of a body that is a prompt. The last is what ``curl -d`` says whatever it sends."""


@dataclass(frozen=True, slots=True)
class TextCall:
    """A prompt that was understood, and how to sample."""

    prompt: ChatPrompt | TextPrompt
    sampling: SamplingParams
    stop: tuple[str, ...]
    on_disconnect: OnDisconnect | None = None
    """None where the query does not say."""

    def request(self, id_: str) -> GenerationRequest:
        return GenerationRequest(id_, self.prompt, self.sampling, 1, self.stop)


def parse_textbot(query: bytes, content_type: str | None, body: bytes, limits: Limits) -> TextCall:
    """The prompt out of ``?prompt=`` or the body, sampling out of the query. Raises InvalidRequest.

    The prompt is one user turn through the model's template; with ``raw=true`` the model continues it bare.
    """
    fields = QueryFields(query_pairs(query))
    parameter = fields.take("prompt")
    if parameter is not None and body:
        raise _both()
    text = str(parameter) if parameter is not None else _decode(content_type, body)
    if not text:
        raise _missing()
    return _take_call(fields, text, limits)


def parse_streamed(query: bytes, content_type: str | None, limits: Limits) -> TextCall:
    """The same for a body that is still coming: what there is to know before it, with an empty prompt."""
    fields = QueryFields(query_pairs(query))
    if fields.take("prompt") is not None:
        raise _both()
    _check_type(content_type)
    return _take_call(fields, "", limits)


class StreamedText:
    """The text of a body that comes in pieces, which end anywhere. Raises InvalidRequest for what is not UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes = 0
        self._characters = 0

    def feed(self, piece: bytes, *, last: bool = False) -> str:
        """What ``piece`` adds: whole characters only. Raises InvalidRequest also where ``last`` leaves it empty."""
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(piece, last)
        except UnicodeDecodeError as error:
            raise _not_utf8(self._bytes - pending + error.start) from None
        self._bytes += len(piece)
        self._characters += len(text)
        if last and not self._characters:
            raise _missing()
        return text


def _take_call(fields: QueryFields, text: str, limits: Limits) -> TextCall:
    raw = fields.boolean("raw")
    on_disconnect = take_on_disconnect(fields)
    sampling, stop = _take_all(fields, limits, ("prompt", "raw", "on_disconnect"))
    prompt = TextPrompt(text) if raw else ChatPrompt((Message("user", text),), field="prompt")
    return TextCall(prompt, sampling, stop, on_disconnect)


@dataclass(frozen=True, slots=True)
class SocketCall:
    """How to sample every answer of a chat socket, and the stored conversation that its turns belong to, if one."""

    sampling: SamplingParams
    stop: tuple[str, ...]
    conversation: str | None = None


def parse_socket(query: bytes, limits: Limits) -> SocketCall:
    """A chat socket's URL. Raises InvalidRequest."""
    fields = QueryFields(query_pairs(query))
    conversation = fields.text("conversation", MAX_ID_LENGTH)
    return SocketCall(*_take_all(fields, limits, ("conversation",)), conversation)


def _take_all(fields: QueryFields, limits: Limits, others: tuple[str, ...]) -> tuple[SamplingParams, tuple[str, ...]]:
    ids = [int(id_) if id_.isdecimal() and len(id_) < 20 else id_ for id_ in fields.all("stop_token_ids")]
    stop_ids = check_token_ids(ids, "stop_token_ids", limits, MAX_STOP_TOKEN_IDS)
    stop = check_stops(fields.all("stop"))
    sampling = take_sampling(fields, limits, stop_token_ids=frozenset(stop_ids))
    if fields.take("n") is not None:
        raise UnsupportedParameter("'n' has no place in plain text, which holds one answer.", param="n")
    fields.finish((*SAMPLING_NAMES, *others))
    return sampling, stop


def _decode(content_type: str | None, body: bytes) -> str:
    _check_type(content_type)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error.start) from None


def _check_type(content_type: str | None) -> None:
    type_, _, parameters = (content_type or "").partition(";")
    if type_.strip().lower() not in ("", *TEXT_TYPES):
        raise InvalidRequest(
            f"A body of type {type_.strip()[:60]!r} is no prompt: send text/plain here, or JSON to "
            "/v1/chat/completions.",
            param="Content-Type",
        )
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise InvalidRequest("The body must be UTF-8 text.", param="Content-Type")


class TextEvents:
    """The text as server-sent events, for a stream that can be picked up again: each has an id, ``REQUEST:NUMBER``.

    The data of an event without a name is a piece of the text, as a JSON string. ``done`` has the finish reason and the
    usage, ``error`` an error object; one of the two is the last.
    """

    def __init__(self, request_id: str) -> None:
        self._id = b"id: " + request_id.encode("ascii") + b":"

    def started(self, number: int) -> bytes:
        """Text has nothing to say before it begins."""
        return b""

    def delta(self, number: int, event: TextDelta) -> bytes:
        text = "".join(part.text for part in event.parts)
        return self._id + b"%d\n" % number + sse.event(orjson.dumps(text)) if text else b""

    def finished(self, number: int, event: Finished) -> bytes:
        body = {"finish_reason": event.reasons[0].value, "usage": usage_object(event.usage)}
        return self._id + b"%d\nevent: done\n" % number + sse.event(orjson.dumps(body))

    def failed(self, number: int, error: bytes) -> bytes:
        return self._id + b"%d\nevent: error\n" % number + sse.event(error)


def _both() -> InvalidRequest:
    return InvalidRequest("Give the prompt as '?prompt=' or as the body, not as both.", param="prompt")


def _missing() -> InvalidRequest:
    return InvalidRequest("The prompt is missing: give '?prompt=…' or a text body.", param="prompt")


def _not_utf8(place: int) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid UTF-8: see byte {place}.", param="prompt")
