"""What goes wrong with a Redis, and how it is told."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from causerie.chat.store import Append, Retention
from causerie.chat.stores import data_folder, make_store, place_of
from causerie.chat.stores.redis import RedisStore
from causerie.chat.stores.sqlite import SQLiteStore
from causerie.errors import ConfigError, StoreError, StoreFull
from tests.chat.stores.samples import ANSWER, answered, conversation, ignore, record, said, user, writes
from tests.support.redis_server import redis_server


@pytest.fixture
async def store(empty_redis: str) -> AsyncIterator[RedisStore]:
    made = RedisStore(empty_redis)
    await made.open("one", ignore)
    yield made
    await made.close()


async def refusal(url: str) -> str:
    """Why a store cannot be opened there."""
    with pytest.raises(StoreError) as caught:
        await RedisStore(url).open("two", ignore)
    assert "redis-" not in str(caught.value) and "secret" not in str(caught.value)
    return str(caught.value)


async def test_a_redis_that_is_not_there_is_called_so() -> None:
    with redis_server() as url:
        pass
    assert "Redis cannot be reached" in await refusal(url)


async def test_one_that_goes_away_is_told_in_the_middle() -> None:
    with redis_server() as url:
        store = RedisStore(url)
        await store.open("one", ignore)
        await store.begin(record())
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be reached"):
            await store.write([Append("r1", 1, said("a"))])
    with pytest.raises(StoreError, match="cannot be reached"):
        await store.events("ada", "r1")
    for _ in range(2):
        await store.close()
    with pytest.raises(StoreError, match="not open"):
        await store.events("ada", "r1")


async def test_a_redis_that_lost_everything_takes_new_responses(store: RedisStore, redis_url: str) -> None:
    await store.begin(record())
    async with Redis.from_url(redis_url) as client:
        await client.flushall()
    await store.write([Append("r1", 1, said("a"))])
    assert await store.response("ada", "r1") is None
    await answered(store, record("r2"))
    assert len(await store.events("ada", "r2")) == len(ANSWER)


async def test_a_wrong_password_is_called_so() -> None:
    with redis_server("--requirepass", "secret") as url:
        assert "Redis refuses this server" in await refusal(url)
        assert "Redis refuses this server" in await refusal(f"{url}?password=secrets")
        store = RedisStore(f"{url}?password=secret")
        await store.open("one", ignore)
        await store.close()


async def test_a_redis_that_throws_keys_away_is_refused() -> None:
    with redis_server("--maxmemory", "10mb", "--maxmemory-policy", "allkeys-lru") as url:
        assert "noeviction" in await refusal(url)


async def test_a_redis_without_memory_keeps_what_it_has_until_something_goes() -> None:
    with redis_server("--maxmemory", "9mb", "--maxmemory-policy", "noeviction") as url:
        store = RedisStore(url)
        await store.open("one", ignore)
        await answered(store, record("r1"), [said("a" * 10**6), *ANSWER[-1:]])
        await store.begin(record("r2"))
        kept = 0
        with pytest.raises(StoreFull, match="no memory left"):
            for kept in range(1, 200):
                await store.write([Append("r2", kept, said("a" * 10**5))])
        assert len(await store.events("ada", "r2")) == kept - 1
        assert await store.delete_response("ada", "r1")
        await store.write([Append("r2", kept, said("b"))])
        await store.close()


async def test_a_replica_is_called_so(store: RedisStore, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(StoreError, match="is a replica"):
                await store.begin(record())
        finally:
            await client.replicaof("NO", "ONE")


async def test_foreign_keys_and_a_newer_schema_are_left_alone(empty_redis: str) -> None:
    async with Redis.from_url(empty_redis) as client:
        await client.set("causerie:schema", 99)
        assert "newer causerie (schema 99" in await refusal(empty_redis)
        await client.delete("causerie:schema")
        await client.set("causerie:running", "something")
        assert "not as causerie left them" in await refusal(empty_redis)


async def test_a_full_store_takes_nothing_more_until_something_goes(empty_redis: str) -> None:
    store = RedisStore(empty_redis, max_bytes=500_000)
    await store.open("one", ignore)
    await store.create_conversation(conversation(), [])
    await store.begin(record("r0"))
    with pytest.raises(StoreFull, match="--store-max-gib"):
        for n in range(1, 1000):
            await answered(store, record(f"r{n}"), [said("a" * 100), *ANSWER[-1:]])
    with pytest.raises(StoreFull):
        await store.add_items("ada", "c1", [user("i1")])
    await store.write(writes("r0", ANSWER))
    with pytest.raises(StoreFull):
        for n in range(1, 1000):
            await store.create_conversation(conversation(f"c{n + 1}"), [])
    assert await store.sweep(0, Retention(None, 250_000)) > 0
    await answered(store, record("new"))
    await store.close()


async def test_the_size_is_that_of_what_is_kept(store: RedisStore, redis_url: str) -> None:
    await store.create_conversation(conversation(), [user("i1"), user("i2")])
    await store.update_conversation("ada", "c1", {"topic": "something longer"})
    await answered(store, record("r1", conversation="c1"))
    await store.begin(record("r2", conversation="c1"))
    await store.delete_response("ada", "r2")
    await store.delete_item("ada", "c1", "i1")
    async with Redis.from_url(redis_url) as client:
        assert int(await client.get("causerie:bytes") or 0) > 1000
        await store.delete_response("ada", "r1")
        await store.delete_conversation("ada", "c1")
        assert await client.get("causerie:bytes") == b"0"
        left = {str(key).split(":")[1] for key in await client.keys("*")}
    assert left <= {"bytes'", "lease", "schema'"}


async def test_a_reference_names_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"XDG_DATA_HOME": "/data"}
    assert str(data_folder(data)) == "/data/causerie"
    assert data_folder({"XDG_DATA_HOME": "relative", "HOME": "/home/ada"}).is_absolute()
    kept = make_store("default", 2**20, port=8000, environ=data)
    assert isinstance(kept, SQLiteStore) and kept.path == Path("/data/causerie/responses-8000.sqlite3")
    nowhere = make_store("default", 2**20, environ=data)
    assert isinstance(nowhere, SQLiteStore) and nowhere.path is None
    for reference in ("default", ":memory:", "somewhere/store.sqlite3"):
        assert isinstance(make_store(reference, 2**20, environ=data), SQLiteStore)
    assert isinstance(make_store("redis://localhost:6379/0", 2**20, environ=data), RedisStore)
    for wrong in ("", "postgres://host/db", "redis://host:port/0", "a\0b"):
        with pytest.raises(ConfigError) as caught:
            make_store(wrong, 2**20, environ=data)
        assert caught.value.param == "store"
    for module in [name for name in sys.modules if name.startswith("causerie.chat.stores.redis")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"pip install 'causerie\[redis\]'"):
        make_store("redis://localhost", 2**20, environ=data)


def test_a_place_is_told_without_its_password() -> None:
    data = {"XDG_DATA_HOME": "/data"}
    assert place_of("redis://me:secret@host:6379/0?x=y", port=1, environ=data) == "redis://host:6379/0"
    assert place_of("default", port=9000, environ=data) == "/data/causerie/responses-9000.sqlite3"
    assert place_of("default", port=0, environ=data).startswith("memory")
