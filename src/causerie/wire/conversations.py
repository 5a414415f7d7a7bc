"""Bodies and objects of the Conversations API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from causerie.chat.records import ConversationRecord, Item
from causerie.errors import InvalidRequest
from causerie.wire.fields import Fields, parse_object
from causerie.wire.items import NewId, new_item_id, parse_items
from causerie.wire.options import take_metadata

MAX_ADDED = 20
"""Items that one request may add."""


@dataclass(frozen=True, slots=True)
class ConversationCall:
    """A conversation that is wanted."""

    items: tuple[Item, ...]
    metadata: Mapping[str, str]


def parse_conversation(body: bytes, new_id: NewId = new_item_id) -> ConversationCall:
    """A body of ``POST /v1/conversations``, which may be empty. Raises InvalidRequest or UnsupportedParameter."""
    fields = Fields(parse_object(body) if body else {})
    call = ConversationCall(_take_items(fields, new_id), take_metadata(fields))
    fields.finish(("items", "metadata"))
    return call


def parse_update(body: bytes) -> dict[str, str]:
    """The metadata that a conversation is to have from now on; null is none."""
    values = parse_object(body)
    if "metadata" not in values:
        raise InvalidRequest("'metadata' is missing: the pairs to keep, or null for none.", param="metadata")
    fields = Fields(values)
    metadata = take_metadata(fields)
    fields.finish(("metadata",))
    return metadata


def parse_added(body: bytes, new_id: NewId = new_item_id) -> tuple[Item, ...]:
    """The items to put behind a conversation's others."""
    fields = Fields(parse_object(body))
    items = _take_items(fields, new_id)
    if not items:
        raise InvalidRequest("'items' is missing: an array of at least one message.", param="items")
    fields.finish(("items",))
    return items


def conversation_object(record: ConversationRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "object": "conversation",
        "created_at": int(record.created),
        "metadata": dict(record.metadata),
    }


def deleted_object(id_: str) -> dict[str, object]:
    """What a conversation is once it is deleted."""
    return {"id": id_, "object": "conversation.deleted", "deleted": True}


def _take_items(fields: Fields, new_id: NewId) -> tuple[Item, ...]:
    values = fields.take("items")
    if values is None:
        return ()
    if not isinstance(values, list):
        fields.refuse("items", "an array of messages", values)
    if len(values) > MAX_ADDED:
        raise InvalidRequest(
            f"'items' has {len(values)} items; at most {MAX_ADDED} may be added at a time.", param="items"
        )
    return parse_items(values, "items", new_id)
