"""Items of a conversation as the Responses and the Conversations API spell them: messages of text, and no others."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import cast

from causerie.chat.records import Item, ItemStatus
from causerie.errors import InvalidRequest, UnsupportedParameter
from causerie.types import Message
from causerie.wire.fields import ANY, Fields, Neutral, content_text, kind, shown

ROLES = ("user", "assistant", "system", "developer")

NewId = Callable[[], str]
"""Makes the id of an item."""

_TEXT_TYPES = ("input_text", "output_text")
_MAX_WORD = 64
_MAX_ID = 256
_NEUTRAL_ITEM: Neutral = {"phase": ("commentary", "final_answer")}
_NEUTRAL_PART: Neutral = {"annotations": (ANY,), "logprobs": (ANY,), "prompt_cache_breakpoint": (ANY,)}


def new_item_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


def parse_items(values: Sequence[object], path: str, new_id: NewId) -> tuple[Item, ...]:
    """Messages as a client writes them, or as it sends back what it was answered.

    Every one gets an id of its own here: the id of an answer that comes back belongs to the answer. Raises
    InvalidRequest or UnsupportedParameter that names the place.
    """
    return tuple(_item(value, f"{path}[{index}]", new_id) for index, value in enumerate(values))


def message(item: Item) -> Message:
    """What the model is told."""
    # The API's later name for the same thing; models' templates know the earlier one.
    return Message("system" if item.role == "developer" else item.role, item.text)


def item_object(item: Item, logprobs: Sequence[object] = ()) -> dict[str, object]:
    answer = item.role == "assistant"
    part = text_part(item.text, logprobs) if answer else {"type": "input_text", "text": item.text}
    return {"id": item.id, "type": "message", "status": item.status, "role": item.role, "content": [part]}


def text_part(text: str, logprobs: Sequence[object] = ()) -> dict[str, object]:
    """The one content part of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def item_list(items: Sequence[Item], has_more: bool) -> dict[str, object]:
    """A page of items; the ids of its ends are empty where it is, as the API has no null there."""
    return {
        "object": "list",
        "data": [item_object(item) for item in items],
        "first_id": items[0].id if items else "",
        "last_id": items[-1].id if items else "",
        "has_more": has_more,
    }


def _item(value: object, path: str, new_id: NewId) -> Item:
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{path}' must be an object, not {kind(value)}.", param=path)
    fields = Fields(value, path + ".")
    type_ = fields.take("type")
    if type_ not in (None, "message"):
        raise UnsupportedParameter(
            f"'{path}.type' must be 'message', not {shown(type_)}: this server takes no other items.",
            param=f"{path}.type",
        )
    role = fields.take("role")
    if role not in ROLES:
        fields.refuse("role", f"one of {', '.join(ROLES)}", role)
    content = content_text(fields.take("content"), f"{path}.content", _part)
    status = fields.text("status", _MAX_WORD) or "completed"
    if status not in ("in_progress", "completed", "incomplete"):
        fields.refuse("status", "in_progress, completed or incomplete", status)
    fields.text("id", _MAX_ID)
    fields.neutral(_NEUTRAL_ITEM)
    fields.finish(("type", "role", "content", "status", "id"))
    return Item(new_id(), role, content, cast(ItemStatus, status))


def _part(value: object, path: str) -> str:
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{path}' must be an object, not {kind(value)}.", param=path)
    fields = Fields(value, path + ".")
    type_ = fields.take("type")
    if type_ not in _TEXT_TYPES:
        raise UnsupportedParameter(
            f"'{path}.type' must be 'input_text' or 'output_text', not {shown(type_)}: this server reads text only.",
            param=f"{path}.type",
        )
    text = fields.take("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"'{path}.text' must be a string, not {kind(text)}.", param=f"{path}.text")
    fields.neutral(_NEUTRAL_PART)
    fields.finish(("type", "text"))
    return text
