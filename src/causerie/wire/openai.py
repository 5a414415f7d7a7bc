"""The shapes of the OpenAI API's answers: chunks of a stream, whole completions, models and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import orjson

from causerie.errors import CauserieError
from causerie.types import Finished, FinishReason, Part, PrefillProgress, Queued, TextDelta, TokenLogprob, Usage
from causerie.wire import sse
from causerie.wire.disconnect import START, Place
from causerie.wire.logprobs import LogprobWriter, TokenNames, chat_logprobs, text_logprobs

Kind = Literal["chat", "text"]

_CHUNK = {"chat": "chat.completion.chunk", "text": "text_completion"}
_WHOLE = {"chat": "chat.completion", "text": "text_completion"}
_ID = {"chat": "chatcmpl-", "text": "cmpl-"}


@dataclass(frozen=True, slots=True)
class Heading:
    """What every chunk of a response, and a whole one, says about it."""

    kind: Kind
    request_id: str
    created: int
    """Unix time, in whole seconds."""
    model: str
    n: int
    logprobs: TokenNames | None = None
    """Where log-probabilities were asked for: how this model's tokens are spelled."""

    def members(self, object_: str) -> dict[str, object]:
        return {
            "id": _ID[self.kind] + self.request_id,
            "object": object_,
            "created": self.created,
            "model": self.model,
        }

    def logprob_writers(self) -> list[LogprobWriter] | None:
        make = chat_logprobs if self.kind == "chat" else text_logprobs
        return None if self.logprobs is None else [make(self.logprobs) for _ in range(self.n)]


class Chunks:
    """Encodes one streamed completion. All that does not change is encoded once; a delta costs one JSON string.

    ``delta`` and ``finished`` return whole server-sent events, perhaps several or none. A response that failed
    or was cancelled is never ``finished``: its stream ends with ``failed`` and has no ``[DONE]``.
    """

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        self._chat = heading.kind == "chat"
        self._include_usage = include_usage
        members = orjson.dumps(heading.members(_CHUNK[heading.kind]))
        self._head = sse.one_line(b"data: " + members[:-1])
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        opening = b',"delta":{"content":' if self._chat else b',"text":'
        closing = b"}" if self._chat else b""
        self._before = [self._head + b',"choices":[{"index":%d' % index + opening for index in range(heading.n)]
        self._between = closing + b',"logprobs":'
        self._after = closing + b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._silent = set(range(heading.n)) if self._chat else set()
        self._logprobs = heading.logprob_writers()

    def delta(self, event: TextDelta) -> bytes:
        parts = event.parts
        if len(parts) == 1 and not self._silent and self._logprobs is None:
            part = parts[0]
            if part.finish_reason is None:
                return self._text(part.index, part.text) if part.text else b""
        return b"".join(self._part(part) for part in parts)

    def finished(self, event: Finished) -> bytes:
        """The end of a response that was not cancelled."""
        if not self._include_usage:
            return sse.DONE
        usage = orjson.dumps(usage_object(event.usage))
        return self._head + b',"choices":[],"usage":' + usage + b"}\n\n" + sse.DONE

    def failed(self, error: bytes) -> bytes:
        """The end of a response that failed; ``error`` is an error body."""
        return sse.event(error)

    def _text(self, index: int, text: str) -> bytes:
        return self._before[index] + sse.json_text(text) + self._after

    def _part(self, part: Part) -> bytes:
        index = part.index
        pieces = []
        if index in self._silent:
            self._silent.remove(index)
            pieces.append(self._choice(index, b'"delta":{"role":"assistant","content":""}', b"null"))
        if part.logprobs and self._logprobs is not None:
            logprobs = sse.one_line(orjson.dumps(self._logprobs[index](part.logprobs)))
            text = sse.json_text(part.text)
            ending = b',"finish_reason":null}]' + self._tail
            pieces.append(self._before[index] + text + self._between + logprobs + ending)
        elif part.text:
            pieces.append(self._text(index, part.text))
        if part.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            empty = b'"delta":{}' if self._chat else b'"text":""'
            pieces.append(self._choice(index, empty, b'"%s"' % part.finish_reason.encode()))
        return b"".join(pieces)

    def _choice(self, index: int, content: bytes, finish_reason: bytes) -> bytes:
        start = self._head + b',"choices":[{"index":%d,' % index
        return start + content + b',"logprobs":null,"finish_reason":' + finish_reason + b"}]" + self._tail


class NumberedChunks:
    """Chunks of a stream that can be picked up again: each server-sent event has an id, ``REQUEST:NUMBER``.

    The numbers are the log's. A delta is one chunk, with an entry for each choice that gained something: so a number
    says what a client has of every choice. ``place`` is where it goes on: pieces that it has are not sent again.
    """

    def __init__(self, heading: Heading, *, include_usage: bool, place: Place = START) -> None:
        self._chat = heading.kind == "chat"
        self._include_usage = include_usage
        self._n = heading.n
        self._members = heading.members(_CHUNK[heading.kind])
        self._id = b"id: " + heading.request_id.encode("ascii") + b":"
        self._logprobs = heading.logprob_writers()
        self._place = place

    def started(self, number: int) -> bytes:
        if not self._chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choices: list[dict[str, object]] = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} for index in range(self._n)
        ]
        return self._events(number, self._chunk(choices))

    def delta(self, number: int, event: TextDelta) -> bytes:
        choices = [self._choice(part) for part in event.parts if part.text or part.logprobs]
        return self._events(number, self._chunk(choices)) if choices else b""

    def finished(self, number: int, event: Finished) -> bytes:
        """The end of a response that was not cancelled."""
        empty: dict[str, object] = {"delta": {}} if self._chat else {"text": ""}
        choices = [
            {"index": index, **empty, "logprobs": None, "finish_reason": reason.value}
            for index, reason in enumerate(event.reasons)
        ]
        pieces = [self._chunk(choices)]
        if self._include_usage:
            pieces.append(self._chunk([], usage_object(event.usage)))
        return self._events(number, *pieces, sse.DONE)

    def failed(self, number: int, error: bytes) -> bytes:
        """The end of a response that failed; ``error`` is an error body."""
        return self._events(number, sse.event(error))

    def _choice(self, part: Part) -> dict[str, object]:
        content: dict[str, object] = {"delta": {"content": part.text}} if self._chat else {"text": part.text}
        logprobs = None
        if part.logprobs and self._logprobs is not None:
            logprobs = self._logprobs[part.index](part.logprobs)
        return {"index": part.index, **content, "logprobs": logprobs, "finish_reason": None}

    def _chunk(self, choices: Sequence[dict[str, object]], usage: dict[str, object] | None = None) -> bytes:
        body = self._members | {"choices": choices}
        if self._include_usage:
            body["usage"] = usage
        return sse.event(orjson.dumps(body))

    def _events(self, number: int, *pieces: bytes) -> bytes:
        had = self._place.pieces if number == self._place.number + 1 else 0
        return b"".join(
            self._id + str(Place(number - 1, count) if count < len(pieces) else number).encode() + b"\n" + piece
            for count, piece in enumerate(pieces, 1)
            if count > had
        )


def progress_comment(event: Queued | PrefillProgress) -> bytes:
    """What a client is told while it waits, on a protocol that has no event for it."""
    if isinstance(event, PrefillProgress):
        return b": prefill %d/%d\n\n" % (event.read, event.total)
    return b": queued, %d before you, about %.0f s\n\n" % (event.position, event.estimated_wait)


class Whole:
    """Gathers a response for a client that does not stream: the same deltas, read to their end."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._texts: list[list[str]] = [[] for _ in range(heading.n)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(heading.n)]

    def delta(self, event: TextDelta) -> None:
        for part in event.parts:
            self._texts[part.index].append(part.text)
            self._logprobs[part.index] += part.logprobs

    def finished(self, event: Finished) -> bytes:
        """The body, of a response that was not cancelled."""
        heading = self._heading
        writers = heading.logprob_writers()
        choices = []
        for index, reason in enumerate(event.reasons):
            text = "".join(self._texts[index])
            logprobs = None if writers is None else writers[index](self._logprobs[index])
            content: dict[str, object] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if heading.kind == "chat"
                else {"text": text}
            )
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": reason.value})
        body = heading.members(_WHOLE[heading.kind])
        return orjson.dumps(body | {"choices": choices, "usage": usage_object(event.usage)})


def usage_object(usage: Usage) -> dict[str, object]:
    counts: dict[str, object] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return counts


def model_object(name: str, created: int, context_window: int) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "causerie",
        "max_model_len": context_window,
    }


def model_list(models: Sequence[dict[str, object]]) -> bytes:
    return orjson.dumps({"object": "list", "data": models})


def error_object(error: CauserieError, type_: str) -> bytes:
    """The body of every answer that is not a success; ``type_`` is the error's class in the API's words."""
    described = {"message": error.message, "type": type_, "param": error.param, "code": error.code}
    return orjson.dumps({"error": described})
