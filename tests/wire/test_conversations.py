"""Conversations and their items, as the API's clients write and read them."""

from __future__ import annotations

from itertools import count
from typing import Any

import orjson
import pytest
from openai.types import conversations as api
from openai.types.responses import ResponseItemList

from causerie.chat.records import ConversationRecord, Item
from causerie.errors import InvalidRequest
from causerie.types import Message
from causerie.wire.conversations import (
    ConversationCall,
    conversation_object,
    deleted_object,
    parse_added,
    parse_conversation,
    parse_update,
)
from causerie.wire.items import item_list, item_object, message, new_item_id

HELLO = {"role": "user", "content": "Hello"}
ITEMS = [
    Item("msg_1", "developer", "Be brief."),
    Item("msg_2", "system", "Be kind."),
    Item("msg_3", "user", "Hello"),
    Item("msg_4", "assistant", "Hi", "incomplete"),
]


def ids() -> Any:
    numbers = count(1)
    return lambda: f"msg_{next(numbers)}"


def refusal(parse: Any, body: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(orjson.dumps(body))
    return caught.value


@pytest.mark.parametrize("body", [b"", b"{}", b'{"items": null, "metadata": null}'])
def test_conversation_may_begin_empty(body: bytes) -> None:
    assert parse_conversation(body) == ConversationCall((), {})


def test_conversation_may_begin_with_items() -> None:
    body = orjson.dumps({"items": [HELLO, {"type": "message", **HELLO}], "metadata": {"a": "b"}})
    items = (Item("msg_1", "user", "Hello"), Item("msg_2", "user", "Hello"))
    assert parse_conversation(body, ids()) == ConversationCall(items, {"a": "b"})


def test_items_are_added_with_new_ids() -> None:
    items = parse_added(orjson.dumps({"items": [item_object(item) for item in ITEMS]}), ids())
    assert list(items) == ITEMS
    assert new_item_id() != new_item_id() and new_item_id().startswith("msg_")


def test_metadata_is_replaced_and_null_clears_it() -> None:
    assert parse_update(b'{"metadata": {"a": "b"}}') == {"a": "b"}
    assert parse_update(b'{"metadata": null}') == {}


@pytest.mark.parametrize(
    ("parse", "body", "param"),
    [
        (parse_conversation, {"items": [HELLO] * 21}, "items"),
        (parse_conversation, {"items": "Hello"}, "items"),
        (parse_conversation, {"items": [{"role": "user"}]}, "items[0].content"),
        (parse_conversation, {"metadata": []}, "metadata"),
        (parse_conversation, {"name": "x"}, "name"),
        (parse_update, {}, "metadata"),
        (parse_update, {"metadata": {}, "items": []}, "items"),
        (parse_added, {}, "items"),
        (parse_added, {"items": []}, "items"),
        (parse_added, {"items": [HELLO], "metadata": {}}, "metadata"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(parse: Any, body: Any, param: str) -> None:
    assert refusal(parse, body).param == param


def test_too_many_pairs_are_counted() -> None:
    assert "has 17 pairs" in refusal(parse_update, {"metadata": {str(n): "x" for n in range(17)}}).message


def test_conversation_is_the_apis_object() -> None:
    body = conversation_object(ConversationRecord("conv_1", "", 1_700_000_000.5, {"a": "b"}))
    model = api.Conversation.model_validate(body)
    assert (model.created_at, model.metadata, model.model_extra) == (1_700_000_000, {"a": "b"}, {})
    assert api.ConversationDeletedResource.model_validate(deleted_object("conv_1")).deleted


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.role)
def test_item_is_the_apis_object(item: Item) -> None:
    model = api.Message.model_validate(item_object(item))
    assert (model.id, model.role, model.status, model.model_extra) == (item.id, item.role, item.status, {})
    (part,) = model.content
    assert part.type == ("output_text" if item.role == "assistant" else "input_text")
    assert part.text == item.text and not part.model_extra


def test_page_of_items_names_its_ends() -> None:
    body = item_list(ITEMS, has_more=True)
    for model in (api.ConversationItemList, ResponseItemList):
        page: Any = model.model_validate(body)
        assert (page.first_id, page.last_id, page.has_more, len(page.data)) == ("msg_1", "msg_4", True, 4)
    assert api.ConversationItemList.model_validate(item_list([], has_more=False)).data == []


def test_model_is_told_the_roles_that_it_knows() -> None:
    assert [message(item) for item in ITEMS[:3]] == [
        Message("system", "Be brief."),
        Message("system", "Be kind."),
        Message("user", "Hello"),
    ]
