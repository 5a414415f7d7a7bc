"""Responses that a shared store has only for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from causerie.chat.log import Numbered
from causerie.chat.store import Append, Retention
from causerie.chat.stores.redis import RedisStore
from causerie.errors import DuplicateRequest, Interrupted, StoreError
from causerie.types import Failed
from tests.chat.stores.samples import ANSWER, answered, conversation, ignore, record, said, writes

LEASE = 1.0


class Server:
    """A store, and what it was told."""

    def __init__(self, url: str, max_bytes: int | None = None) -> None:
        self.store = RedisStore(url, lease=LEASE, max_bytes=max_bytes)
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.followed: asyncio.Queue[str] = asyncio.Queue()

    async def open(self) -> RedisStore:
        await self.store.open("x", self.cancelled.put_nowait, self.followed.put_nowait)
        return self.store


@pytest.fixture
async def one(empty_redis: str) -> AsyncIterator[Server]:
    server = Server(empty_redis)
    await server.open()
    yield server
    await server.store.close()


@pytest.fixture
async def two(empty_redis: str) -> AsyncIterator[RedisStore]:
    made = RedisStore(empty_redis, lease=LEASE)
    await made.open("two", ignore)
    yield made
    await made.close()


@pytest.fixture
async def redis(empty_redis: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(empty_redis, protocol=2) as client:
        yield client


async def left(redis: Redis, id_: str) -> list[int]:
    """Milliseconds that the record and its events still have."""
    return [await redis.pttl(f"causerie:{kind}:{id_}") for kind in ("response", "events")]


async def follow_all(store: RedisStore, id_: str) -> list[Numbered]:
    found: list[Numbered] = []
    while more := await store.follow("ada", id_, len(found)):
        found += more
    return found


async def test_it_is_read_and_followed_like_any_other(one: Server, two: RedisStore) -> None:
    made = record(expires=5)
    await one.store.begin(made)
    following = asyncio.create_task(follow_all(two, "r1"))
    await one.store.write(writes("r1", ANSWER))
    assert await following == await two.events("ada", "r1") == list(enumerate(ANSWER, 1))
    found = await two.response("ada", "r1")
    assert found is not None and found.outcome is not None and found.outcome.text == "Hé là"
    assert replace(found, outcome=None) == replace(made, expires=None)
    assert await two.response("bob", "r1") is None and await two.events("bob", "r1") == []
    with pytest.raises(DuplicateRequest):
        await two.begin(record(expires=5))


async def test_it_expires_its_seconds_after_its_end(one: Server, redis: Redis) -> None:
    await answered(one.store, record(expires=60))
    for milliseconds in await left(redis, "r1"):
        assert 55_000 < milliseconds <= 60_000
    await answered(one.store, record("r2", expires=0))
    for milliseconds in await left(redis, "r2"):
        assert 0 < milliseconds <= 1000 * LEASE


@pytest.mark.slow
async def test_while_it_runs_it_stays_although_nothing_is_said(one: Server, redis: Redis) -> None:
    await one.store.begin(record(expires=0))
    await one.store.write([Append("r1", 1, said("a"))])
    for _ in range(8):
        await asyncio.sleep(LEASE / 2)
        assert min(await left(redis, "r1")) > 0
    await one.store.write(writes("r1", ANSWER[-1:], before=[said("a")]))
    assert one.cancelled.empty()


@pytest.mark.slow
async def test_nothing_is_left_of_it_after_its_process(empty_redis: str, redis: Redis) -> None:
    server = Server(empty_redis)
    store = await server.open()
    await store.begin(record("silent", expires=0))
    await store.begin(record("r1", expires=0))
    await store.write([Append("r1", 1, said("a"))])
    await store.close()
    await asyncio.sleep(2 * LEASE + 0.2)
    assert {*await redis.keys()} <= {b"causerie:schema", b"causerie:bytes"}


async def test_what_a_dead_process_ran_ends_once_and_then_expires(
    empty_redis: str, two: RedisStore, redis: Redis
) -> None:
    store = await Server(empty_redis).open()
    await store.begin(record(expires=60))
    await store.write([Append("r1", 1, said("Hé", 2))])
    await store.close()
    (found, *same) = await asyncio.gather(*(follow_all(two, "r1") for _ in range(3)))
    assert all([number for number, _ in each] == [1, 2] for each in same)
    delta, failed = found
    assert delta.event == said("Hé", 2)
    assert isinstance(failed.event, Failed) and isinstance(failed.event.error, Interrupted)
    for milliseconds in await left(redis, "r1"):
        assert 55_000 < milliseconds <= 60_000


async def test_it_counts_for_nothing_and_a_full_store_takes_it(empty_redis: str, redis: Redis) -> None:
    store = await Server(empty_redis, max_bytes=10_000).open()
    await answered(store, record("kept"))
    size = await redis.get("causerie:bytes")
    await answered(store, record("r1", expires=60), [said("a" * 20_000), *ANSWER[-1:]])
    assert await redis.get("causerie:bytes") == size
    assert not await redis.exists("causerie:running")
    assert await store.sweep(1e12, Retention(0, 0)) == 1
    assert await store.response("ada", "kept") is None and await store.response("ada", "r1") is not None
    assert await store.delete_response("ada", "r1") and not await store.delete_response("ada", "r1")
    assert await redis.get("causerie:bytes") == b"0"
    await store.close()


async def test_its_process_is_told_to_cancel_it_and_that_it_is_followed(one: Server, two: RedisStore) -> None:
    await one.store.begin(record(expires=60))
    await two.ask_cancel("r1")
    assert await one.cancelled.get() == "r1"
    following = [asyncio.create_task(follow_all(two, "r1")) for _ in range(5)]
    assert await one.followed.get() == "r1"
    await one.store.write(writes("r1", ANSWER))
    await asyncio.gather(*following)
    await two.events("ada", "r1")
    await two.ask_cancel("r1")
    assert one.cancelled.empty() and one.followed.empty()


async def test_stored_ones_say_that_they_are_followed_too(one: Server, two: RedisStore) -> None:
    await one.store.create_conversation(conversation(), [])
    await one.store.begin(record(conversation="c1"))
    following = asyncio.create_task(follow_all(two, "r1"))
    assert await one.followed.get() == "r1"
    await one.store.write(writes("r1", ANSWER))
    await following


async def test_a_process_that_lost_its_lease_is_told_to_stop(one: Server, two: RedisStore, redis: Redis) -> None:
    await one.store.begin(record("r1", expires=60))
    await one.store.begin(record("r2", expires=60))
    await redis.delete(f"causerie:lease:{one.store._held().name}")
    assert len(await follow_all(two, "r1")) == 1
    async with asyncio.timeout(5):
        assert {await one.cancelled.get(), await one.cancelled.get()} == {"r1", "r2"}
    with pytest.raises(StoreError, match="did not respond"):
        await one.store.write([Append("r2", 1, said("a"))])
