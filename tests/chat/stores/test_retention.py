"""What is removed, and what is not."""

from __future__ import annotations

import time
from dataclasses import replace

from causerie.chat.records import Outcome, Status
from causerie.chat.store import Append, End, Retention, Store
from causerie.types import Usage
from tests.chat.stores.samples import answered, conversation, finished, record, said, user

NOW = time.time()
NOTHING = Retention(None, None)


async def ended(store: Store, id_: str, when: float, text: str = "a", *, conversation: str | None = None) -> None:
    await store.begin(record(id_, conversation=conversation))
    outcome = Outcome(Status.COMPLETED, text, Usage(1, 1), when)
    await store.write([Append(id_, 1, said(text)), Append(id_, 2, finished()), End(id_, outcome)])


async def left(store: Store, ids: list[str]) -> list[str]:
    return [id_ for id_ in ids if await store.response("ada", id_) is not None]


async def test_the_old_go_and_the_young_stay(store: Store) -> None:
    ids = [f"r{n}" for n in range(40)]
    for n, id_ in enumerate(ids):
        await ended(store, id_, NOW - n)
    assert await store.sweep(NOW, NOTHING) == 0
    assert await store.sweep(NOW, Retention(9.5, None)) == 30
    assert await left(store, ids) == ids[:10]
    assert await store.events("ada", "r20") == []
    assert await store.sweep(NOW, Retention(9.5, None)) == 0


async def test_a_running_response_is_never_too_old(store: Store) -> None:
    await store.create_conversation(replace(conversation(), created=NOW - 50), [])
    await store.begin(replace(record("r1"), created=NOW - 50))
    await store.begin(replace(record("r2", conversation="c1"), created=NOW - 50))
    assert await store.sweep(NOW + 1e6, Retention(1, 1)) == 0
    await store.write([Append("r1", 1, said("a"))])
    assert await left(store, ["r1", "r2"]) == ["r1", "r2"]
    assert await store.conversation("ada", "c1") is not None


async def test_a_conversation_goes_when_nothing_was_added_for_long(store: Store) -> None:
    for id_ in ("c1", "c2", "c3"):
        await store.create_conversation(replace(conversation(id_), created=NOW - 50), [user("i1")])
    await store.add_items("ada", "c1", [user("i2")])
    await ended(store, "r1", time.time(), conversation="c3")
    assert await store.sweep(time.time(), Retention(25, None)) == 1
    assert await store.conversation("ada", "c2") is None
    assert (await store.items("ada", "c1")).items == [user("i1"), user("i2")]
    assert len((await store.items("ada", "c3")).items) == 3


async def test_a_store_that_is_too_large_loses_its_oldest(store: Store) -> None:
    ids = [f"r{n}" for n in range(20)]
    for n, id_ in enumerate(ids):
        await ended(store, id_, NOW + n, "a" * 20_000)
    removed = await store.sweep(NOW, Retention(None, 400_000))
    assert 0 < removed < 20
    assert await left(store, ids) == ids[removed:]
    assert await store.sweep(NOW, Retention(None, 400_000)) == 0


async def test_what_was_removed_leaves_its_id_free(store: Store) -> None:
    await ended(store, "r1", NOW - 50)
    assert await store.sweep(NOW, Retention(1, None)) == 1
    await answered(store, record("r1"))
    assert len(await store.events("ada", "r1")) == 5
