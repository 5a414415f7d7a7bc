"""Events as bytes for a store, and back. Short keys: there is one for each step of an answer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import orjson

from causerie.errors import CauserieError, error_named
from causerie.types import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Part,
    PrefillProgress,
    Queued,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)

MALFORMED = (ValueError, TypeError, LookupError)
"""What it raises to make a value of bytes that were meant for another one."""


def encode(event: Event) -> bytes:
    """JSON; ``decode`` gives an equal event (an error keeps its class, message and param)."""
    match event:
        case TextDelta(parts, acknowledged):
            value: Any = ["d", [_part(part) for part in parts], *_if_any(acknowledged)]
        case Queued(position, wait):
            value = ["q", position, wait]
        case PrefillProgress(read, total):
            value = ["p", read, total]
        case Started(prompt_tokens, dropped):
            value = ["s", prompt_tokens, dropped]
        case Finished(reasons, usage, kept):
            value = ["f", list(reasons), usage_list(usage), *_if_any(kept)]
        case Failed(error, usage, kept):
            value = ["e", *error_list(error), usage_list(usage), *_if_any(kept)]
    return orjson.dumps(value)


def decode(data: bytes) -> Event:
    """Raises one of ``MALFORMED`` for what this version does not write."""
    kind, *rest = orjson.loads(data)
    match kind:
        case "d":
            return TextDelta(tuple(map(_to_part, rest[0])), *rest[1:])
        case "q":
            return Queued(*rest)
        case "p":
            return PrefillProgress(*rest)
        case "s":
            return Started(*rest)
        case "f":
            return Finished(tuple(map(FinishReason, rest[0])), Usage(*rest[1]), *rest[2:])
        case "e":
            return Failed(to_error(rest[:3]), Usage(*rest[3]), *rest[4:])
    raise ValueError(f"unknown event {kind!r}")


def decode_known(data: Iterable[bytes]) -> list[Event]:
    """The events up to the first that this version does not know."""
    events: list[Event] = []
    with suppress(*MALFORMED):
        for each in data:
            events.append(decode(each))
    return events


def usage_list(usage: Usage) -> list[int | str | None]:
    return [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.cache_miss]


def error_list(error: CauserieError) -> list[str | None]:
    return [error.code, error.message, error.param]


def to_error(values: list[Any]) -> CauserieError:
    code, message, param = values
    return error_named(code, message, param=param)


def _if_any(characters: int | None) -> list[int]:
    return [] if characters is None else [characters]


def _part(part: Part) -> list[Any]:
    values: list[Any] = [part.index, part.text, part.tokens, part.finish_reason]
    return [*values, [[one.id, one.logprob, one.top] for one in part.logprobs]] if part.logprobs else values


def _to_part(values: list[Any]) -> Part:
    index, text, tokens, reason, *more = values
    logprobs = (
        tuple(TokenLogprob(id_, logprob, tuple(map(tuple, top))) for id_, logprob, top in more[0]) if more else ()
    )
    return Part(index, text, tokens, logprobs, None if reason is None else FinishReason(reason))
