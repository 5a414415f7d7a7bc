"""Records as SQLite rows, and back."""

from __future__ import annotations

from typing import Any, Final

import orjson

from causerie.chat.event_codec import error_list, to_error, usage_list
from causerie.chat.records import ConversationRecord, Item, Outcome, ResponseRecord, Status
from causerie.chat.stores.refusals import reading
from causerie.types import Usage

RESPONSE: Final = (
    "response.id, owner, created, model, parameters, input, output_id, instructions, response.previous, conversation, "
    "background, runner, status, text, usage, ended, reason, error"
)
"""The columns that ``to_response`` reads."""


def item_list(item: Item) -> list[str]:
    return [item.id, item.role, item.text, item.status]


def response_row(record: ResponseRecord) -> tuple[Any, ...]:
    """All but the outcome."""
    return (
        record.id,
        record.owner,
        record.created,
        record.model,
        orjson.dumps(record.parameters),
        orjson.dumps([item_list(item) for item in record.input]),
        record.output_id,
        record.instructions,
        record.previous,
        record.conversation,
        record.background,
        record.runner,
    )


def outcome_row(outcome: Outcome) -> tuple[Any, ...]:
    error = None if outcome.error is None else orjson.dumps(error_list(outcome.error))
    usage = orjson.dumps(usage_list(outcome.usage))
    return outcome.status, outcome.text, usage, outcome.ended, outcome.reason, error


def to_response(row: tuple[Any, ...]) -> ResponseRecord:
    id_, owner, created, model, parameters, items, output_id, instructions, previous, conversation, *rest = row
    background, runner, *outcome = rest
    with reading("response", id_):
        return ResponseRecord(
            id_,
            owner,
            created,
            model,
            orjson.loads(parameters),
            tuple(Item(*values) for values in orjson.loads(items)),
            output_id,
            instructions,
            previous,
            conversation,
            bool(background),
            runner,
            _to_outcome(*outcome),
        )


def _to_outcome(
    status: str | None, text: str, usage: bytes, ended: float, reason: str | None, error: bytes | None
) -> Outcome | None:
    if status is None:
        return None
    reported = None if error is None else to_error(orjson.loads(error))
    return Outcome(Status(status), text, Usage(*orjson.loads(usage)), ended, reason, reported)


def to_conversation(row: tuple[Any, ...]) -> ConversationRecord:
    id_, owner, created, metadata = row
    with reading("conversation", id_):
        return ConversationRecord(id_, owner, created, orjson.loads(metadata))
