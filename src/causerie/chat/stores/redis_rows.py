"""Records as JSON for Redis, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from causerie.chat.event_codec import error_list, to_error, usage_list
from causerie.chat.records import ConversationRecord, Item, Outcome, ResponseRecord, Status
from causerie.chat.stores.refusals import reading
from causerie.chat.stores.sqlite_rows import item_list
from causerie.types import Usage


def response_json(record: ResponseRecord) -> bytes:
    """All but the outcome."""
    return orjson.dumps(
        [
            record.id,
            record.owner,
            record.created,
            record.model,
            record.parameters,
            [item_list(item) for item in record.input],
            record.output_id,
            record.instructions,
            record.previous,
            record.conversation,
            record.background,
            record.runner,
        ]
    )


def to_response(asked: str, data: bytes, outcome: bytes | None) -> ResponseRecord:
    """``asked`` is its id, or that of one that continues it."""
    with reading("response", asked):
        id_, owner, created, model, parameters, items, *rest = orjson.loads(data)
        input_ = tuple(Item(*item) for item in items)
        output_id, instructions, previous, conversation, background, runner = rest
    with reading("response", id_):
        return ResponseRecord(
            id_,
            owner,
            created,
            model,
            parameters,
            input_,
            output_id,
            instructions,
            previous,
            conversation,
            background,
            runner,
            to_outcome(outcome),
        )


def outcome_json(outcome: Outcome) -> bytes:
    error = None if outcome.error is None else error_list(outcome.error)
    values = [outcome.status, outcome.text, usage_list(outcome.usage), outcome.ended, outcome.reason, error]
    return orjson.dumps(values)


def to_outcome(data: bytes | None) -> Outcome | None:
    if data is None:
        return None
    status, text, usage, ended, reason, error = orjson.loads(data)
    return Outcome(Status(status), text, Usage(*usage), ended, reason, None if error is None else to_error(error))


def item_json(item: Item | None) -> bytes:
    """All but its id; nothing for none."""
    return b"" if item is None else orjson.dumps(item_list(item)[1:])


def pairs(items: Iterable[Item]) -> Iterator[str | bytes]:
    """Each item's id and the rest of it."""
    for item in items:
        yield item.id
        yield item_json(item)


def to_item(id_: bytes, data: bytes) -> Item:
    with reading("item", id_.decode()):
        return Item(id_.decode(), *orjson.loads(data))


def conversation_json(record: ConversationRecord) -> bytes:
    return orjson.dumps([record.id, record.owner, record.created])


def to_conversation(asked: str, data: bytes, metadata: bytes) -> ConversationRecord:
    with reading("conversation", asked):
        id_, owner, created = orjson.loads(data)
        return ConversationRecord(id_, owner, created, orjson.loads(metadata))
