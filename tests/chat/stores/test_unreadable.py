"""A record that this version did not write, or that is damaged: it is named, and in nobody else's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import openai
import orjson
import pytest
from openai import AsyncOpenAI

from causerie.chat.archive import Archive
from causerie.chat.records import Status
from causerie.chat.store import Append, Retention, Store
from causerie.chat.stores.redis import RedisStore
from causerie.chat.stores.sqlite import SQLiteStore
from causerie.errors import RecordUnreadable
from tests.chat.stores.samples import ANSWER, answered, conversation, ignore, record, said
from tests.support.server import running_server
from tests.support.service import says, service_with


async def change(store: Store, statement: str, *values: object) -> None:
    assert isinstance(store, SQLiteStore)
    done = await store._on_thread(lambda: store._connection().execute(statement, values))
    assert done.rowcount == 1


async def of_another_version(store: Store, id_: str) -> None:
    """The response has ended in a way that is not known here."""
    if isinstance(store, RedisStore):
        redis, key = store._calls.redis, f"causerie:response:{id_}"
        await redis.hset(key, "outcome", orjson.dumps(["paused", *orjson.loads(await redis.hget(key, "outcome"))[1:]]))
    else:
        await change(store, "UPDATE response SET status = 'paused' WHERE id = ?", id_)


async def say_something_new(store: Store, id_: str) -> None:
    """The response's second event is not known here."""
    if isinstance(store, RedisStore):
        await store._calls.redis.xadd(f"causerie:events:{id_}", {"d": b'["hum"]'}, "2-0")
    else:
        await change(store, "INSERT INTO event SELECT n, 2, '[\"hum\"]' FROM response WHERE id = ?", id_)


async def test_it_is_named_and_the_others_are_read_swept_and_deleted(store: Store) -> None:
    for id_ in ("r1", "r2", "r3"):
        await answered(store, record(id_))
    await answered(store, record("r4", previous="r1"))
    await of_another_version(store, "r1")
    await of_another_version(store, "r3")
    with pytest.raises(RecordUnreadable, match="response 'r1'"):
        await store.response("ada", "r1")
    with pytest.raises(RecordUnreadable, match="response 'r1'"):
        await store.chain("ada", "r4")
    found = await store.response("ada", "r2")
    assert found is not None and len(await store.events("ada", "r2")) == len(ANSWER)
    assert await store.delete_response("ada", "r3")
    assert await store.sweep(time.time() + 60, Retention(1.0, None)) == 3


@pytest.mark.parametrize("make", ["file", "redis"], indirect=True)
async def test_what_a_gone_process_left_unreadable_ends_all_the_same(make: Callable[[], Store]) -> None:
    gone = make()
    await gone.open("gone", ignore)
    await gone.create_conversation(conversation(), [])
    await gone.begin(record("r1", conversation="c1"))
    await gone.begin(record("r2"))
    for id_ in ("r1", "r2"):
        await gone.write([Append(id_, 1, said("Hé"))])
    await say_something_new(gone, "r1")
    await gone.close()
    store = make()
    await store.open("one", ignore)
    for id_ in ("r1", "r2"):
        found = await store.response("ada", id_)
        assert found is not None and found.outcome is not None
        assert (found.outcome.status, found.outcome.text) == (Status.FAILED, "Hé")
    with pytest.raises(RecordUnreadable, match="response 'r1'"):
        await store.events("ada", "r1")
    assert len(await store.events("ada", "r2")) == 2
    await answered(store, record("r3", conversation="c1"))
    await store.close()


@pytest.mark.parametrize("make", ["memory", "redis"], indirect=True)
async def test_a_client_is_told_which_one_it_is_and_can_delete_it(make: Callable[[], Store]) -> None:
    service, store = service_with(says("Yes")), make()
    async with (
        running_server(service, Archive(service, store, Retention(None, None))) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        await answered(store, record(owner=""))
        await of_another_version(store, "r1")
        reading = client.responses.retrieve("r1"), client.responses.retrieve("r1", stream=True)
        continuing = client.responses.create(model="default", input="Hi", previous_response_id="r1")
        for refused in await asyncio.gather(*reading, continuing, return_exceptions=True):
            assert isinstance(refused, openai.InternalServerError) and refused.code == "record_unreadable", refused
        await client.responses.delete("r1")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("r1")
