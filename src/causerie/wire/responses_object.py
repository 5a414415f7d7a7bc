"""The response object of the Responses API, and what it is made of."""

from __future__ import annotations

from collections.abc import Sequence

from causerie.chat.records import ResponseRecord, Status
from causerie.errors import CauserieError, InvalidRequest, Overloaded, ShuttingDown
from causerie.text.turns import Miss
from causerie.types import Usage
from causerie.wire.items import item_object

_DEFAULTS: dict[str, object] = {
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""What a request that names none of them asked for."""

_ERROR_CODES: dict[type[CauserieError], str] = {
    CauserieError: "server_error",
    InvalidRequest: "invalid_prompt",
    Overloaded: "rate_limit_exceeded",
    ShuttingDown: "server_error",
}


def response_object(
    record: ResponseRecord, status: Status = Status.IN_PROGRESS, *, logprobs: Sequence[object] = ()
) -> dict[str, object]:
    """A response as clients see it; ``status`` is of one that has not ended, ``logprobs`` are the answer's."""
    outcome, output = record.outcome, record.output
    status = status if outcome is None else outcome.status
    completed = outcome is not None and status is Status.COMPLETED
    incomplete = outcome is not None and status is Status.INCOMPLETE
    return {
        "id": record.id,
        "object": "response",
        "created_at": int(record.created),
        "status": status.value,
        "background": record.background,
        "completed_at": int(outcome.ended) if outcome is not None and completed else None,
        "conversation": None if record.conversation is None else {"id": record.conversation},
        "error": None if outcome is None or outcome.error is None else error_member(outcome.error),
        "incomplete_details": {"reason": outcome.reason} if outcome is not None and incomplete else None,
        "instructions": record.instructions,
        "model": record.model,
        "output": [] if output is None else [item_object(output, logprobs)],
        "previous_response_id": record.previous,
        "prompt_cache_diagnostics": _cache_diagnostics(record),
        "usage": None if outcome is None else usage_object(outcome.usage),
        **_DEFAULTS,
        **record.parameters,
    }


def deleted_object(id_: str) -> dict[str, object]:
    """What a response is once it is deleted."""
    return {"id": id_, "object": "response", "deleted": True}


def usage_object(usage: Usage) -> dict[str, object]:
    """The API has no word for an unknown count: what the engine does not tell is 0."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }


def _cache_diagnostics(record: ResponseRecord) -> dict[str, object] | None:
    """Whether a turn found what had been computed of its conversation; ``cause`` is our own word for why not."""
    if record.outcome is None or (record.previous is None and record.conversation is None):
        return None
    usage = record.outcome.usage
    if usage.cache_miss is None:
        return {"type": "cache_hit"} if usage.cached_tokens else {"type": "unavailable"}
    if usage.cache_miss == Miss.EVICTED:
        return {"type": "unavailable", "cause": usage.cache_miss}
    reason = "model_changed" if usage.cache_miss == Miss.MODEL_CHANGED else "input_changed"
    missed = usage.prompt_tokens - (usage.cached_tokens or 0)
    return {"type": "cache_miss", "reason": reason, "cache_missed_tokens": missed, "cause": usage.cache_miss}


def error_member(error: CauserieError) -> dict[str, object]:
    """The ``error`` of a failed response: a code that the API knows, and ours, which says more, as the type."""
    code = next(_ERROR_CODES[class_] for class_ in type(error).__mro__ if class_ in _ERROR_CODES)
    return {"code": code, "message": error.message, "param": error.param, "type": error.code}
