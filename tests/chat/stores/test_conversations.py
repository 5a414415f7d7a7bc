"""What every store does with conversations and their items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from causerie.chat.records import Item
from causerie.chat.store import Append, Store
from causerie.errors import ConversationBusy, ConversationNotFound, DuplicateRequest, ItemNotFound
from causerie.types import FinishReason
from tests.chat.stores.samples import ANSWER, answered, conversation, finished, record, said, user, writes


async def ids(store: Store, owner: str = "ada", id_: str = "c1") -> list[str]:
    return [item.id for item in (await store.items(owner, id_)).items]


async def test_a_conversation_comes_back_as_it_was_made(store: Store) -> None:
    made = conversation()
    await store.create_conversation(made, [user("i1"), Item("i2", "assistant", "Oui", "incomplete")])
    assert await store.conversation("ada", "c1") == made
    found = await store.items("ada", "c1")
    assert found == ([user("i1"), Item("i2", "assistant", "Oui", "incomplete")], False)
    assert await store.item("ada", "c1", "i1") == user("i1")
    assert await store.item("ada", "c1", "i3") is None


async def test_a_taken_conversation_id_is_refused(store: Store) -> None:
    await store.create_conversation(conversation(), [])
    with pytest.raises(DuplicateRequest, match="'c1'"):
        await store.create_conversation(conversation(owner="bob"), [user("i1")])
    assert await ids(store) == []


async def test_metadata_is_replaced(store: Store) -> None:
    made = conversation()
    await store.create_conversation(made, [])
    found = await store.update_conversation("ada", "c1", {"topic": "thé"})
    assert found is not None and (found.metadata, found.created) == ({"topic": "thé"}, made.created)
    assert await store.conversation("ada", "c1") == found
    assert await store.update_conversation("ada", "c2", {}) is None


@pytest.mark.parametrize("newest_first", [False, True])
async def test_items_are_read_page_by_page(store: Store, newest_first: bool) -> None:
    await store.create_conversation(conversation(), [user(f"i{n}") for n in range(3)])
    await store.add_items("ada", "c1", [user(f"i{n}") for n in range(3, 7)])
    found: list[str] = []
    more = True
    while more:
        page = await store.items("ada", "c1", after=found[-1] if found else None, limit=2, newest_first=newest_first)
        found += [item.id for item in page.items]
        more = page.has_more
    expected = [f"i{n}" for n in range(7)]
    assert found == (expected[::-1] if newest_first else expected)
    with pytest.raises(ItemNotFound, match="'i9'"):
        await store.items("ada", "c1", after="i9")


async def test_the_items_behind_the_last_are_none(store: Store) -> None:
    await store.create_conversation(conversation(), [user("i1"), user("i2")])
    assert await store.items("ada", "c1", after="i2") == ([], False)
    assert await store.items("ada", "c1", after="i1", limit=1) == ([user("i2")], False)


async def test_a_taken_item_id_refuses_all_of_the_call(store: Store) -> None:
    await store.create_conversation(conversation(), [user("i1")])
    for wrong in ([user("i2"), user("i1")], [user("i2"), user("i2")]):
        with pytest.raises(DuplicateRequest):
            await store.add_items("ada", "c1", wrong)
    assert await ids(store) == ["i1"]


async def test_an_item_goes_and_the_order_stays(store: Store) -> None:
    await store.create_conversation(conversation(), [user("i1"), user("i2"), user("i3")])
    assert await store.delete_item("ada", "c1", "i3")
    assert await store.delete_item("ada", "c1", "i1")
    assert not await store.delete_item("ada", "c1", "i1")
    await store.add_items("ada", "c1", [user("i1"), user("i4")])
    assert await ids(store) == ["i2", "i1", "i4"]


async def test_a_response_in_a_conversation_adds_its_input_then_its_answer(store: Store) -> None:
    await store.create_conversation(conversation(), [user("i1")])
    await store.begin(record(conversation="c1"))
    assert await ids(store) == ["i1", "in_r1"]
    await store.write(writes("r1", ANSWER))
    assert await ids(store) == ["i1", "in_r1", "out_r1"]
    assert await store.item("ada", "c1", "out_r1") == Item("out_r1", "assistant", "Hé là")


async def test_an_answer_that_was_cut_is_an_incomplete_item(store: Store) -> None:
    await store.create_conversation(conversation(), [])
    await answered(store, record(conversation="c1"), [said("Hé"), finished(FinishReason.LENGTH)])
    assert await store.item("ada", "c1", "out_r1") == Item("out_r1", "assistant", "Hé", "incomplete")


async def test_an_answer_without_text_is_no_item(store: Store) -> None:
    await store.create_conversation(conversation(), [])
    await answered(store, record(conversation="c1"), [finished(FinishReason.CANCELLED)])
    assert await ids(store) == ["in_r1"]


async def test_one_response_at_a_time_in_a_conversation(store: Store) -> None:
    await store.create_conversation(conversation("c1"), [user("i1")])
    await store.create_conversation(conversation("c2"), [])
    await store.begin(record("r1", conversation="c1"))
    with pytest.raises(ConversationBusy, match="'c1'") as caught:
        await store.begin(record("r2", conversation="c1"))
    assert caught.value.param == "conversation"
    with pytest.raises(ConversationBusy):
        await store.add_items("ada", "c1", [user("i2")])
    with pytest.raises(ConversationBusy):
        await store.delete_item("ada", "c1", "i1")
    await store.begin(record("r3", conversation="c2"))
    await store.write(writes("r1", ANSWER))
    await store.begin(record("r2", conversation="c1"))
    assert await ids(store) == ["i1", "in_r1", "out_r1", "in_r2"]


@pytest.mark.parametrize("there", [[], ["i1", "i2"]])
async def test_a_response_begins_only_behind_what_its_history_ended_with(store: Store, there: list[str]) -> None:
    await store.create_conversation(conversation(), [user(id_) for id_ in there])
    for behind in ("i1", "i3", "" if there else "i2"):
        with pytest.raises(ConversationBusy):
            await store.begin(record(conversation="c1"), behind)
    assert await ids(store) == there and await store.response("ada", "r1") is None
    await store.begin(record(conversation="c1"), there[-1] if there else "")
    assert await ids(store) == [*there, "in_r1"]


async def test_a_deleted_running_response_frees_its_conversation(store: Store) -> None:
    await store.create_conversation(conversation(), [])
    await store.begin(record(conversation="c1"))
    await store.delete_response("ada", "r1")
    await store.write(writes("r1", ANSWER))
    assert await ids(store) == ["in_r1"]
    await store.begin(record("r2", conversation="c1"))


async def test_a_deleted_conversation_leaves_its_responses(store: Store) -> None:
    await store.create_conversation(conversation(), [user("i1")])
    await answered(store, record("r1", conversation="c1"))
    await store.begin(record("r2", conversation="c1"))
    assert await store.delete_conversation("ada", "c1")
    assert not await store.delete_conversation("ada", "c1")
    await store.write(writes("r2", ANSWER))
    assert await store.conversation("ada", "c1") is None
    found = await store.response("ada", "r2")
    assert found is not None and found.outcome is not None
    await store.create_conversation(conversation(), [])
    assert await ids(store) == []


async def test_a_response_in_an_unknown_conversation_is_not_kept(store: Store) -> None:
    with pytest.raises(ConversationNotFound, match="'c1'"):
        await store.begin(record(conversation="c1"))
    assert await store.response("ada", "r1") is None


async def test_a_refused_response_leaves_nothing(store: Store) -> None:
    await store.create_conversation(conversation(), [user("in_r1"), user("out_r2")])
    for id_ in ("r1", "r2"):
        with pytest.raises(DuplicateRequest):
            await store.begin(record(id_, conversation="c1"))
        assert await store.response("ada", id_) is None
    assert await ids(store) == ["in_r1", "out_r2"]
    await store.begin(record("r3", conversation="c1"))


REFUSED: list[Callable[[Store], Awaitable[object]]] = [
    lambda store: store.items("bob", "c1"),
    lambda store: store.add_items("bob", "c1", [user("i9")]),
    lambda store: store.delete_item("bob", "c1", "i1"),
    lambda store: store.begin(record("r9", owner="bob", conversation="c1")),
]


@pytest.mark.parametrize("call", REFUSED)
async def test_another_owners_conversation_is_not_found(
    store: Store, call: Callable[[Store], Awaitable[object]]
) -> None:
    await store.create_conversation(conversation(), [user("i1")])
    with pytest.raises(ConversationNotFound, match="'c1'"):
        await call(store)
    assert await ids(store) == ["i1"]


async def test_another_owner_sees_and_changes_nothing_of_a_conversation(store: Store) -> None:
    made = conversation()
    await store.create_conversation(made, [user("i1")])
    assert await store.conversation("bob", "c1") is None
    assert await store.item("bob", "c1", "i1") is None
    assert await store.update_conversation("bob", "c1", {}) is None
    assert not await store.delete_conversation("bob", "c1")
    assert await store.conversation("ada", "c1") == made


async def test_item_ids_are_each_conversations_own(store: Store) -> None:
    await store.create_conversation(conversation("c1"), [user("i1", "a")])
    await store.create_conversation(conversation("c2"), [user("i1", "b")])
    await store.begin(record())
    await store.write([Append("r1", 1, said("x"))])
    found = await store.item("ada", "c2", "i1")
    assert found is not None and found.text == "b"
