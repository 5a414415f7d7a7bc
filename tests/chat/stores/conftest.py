"""The stores that the conformance tests run against."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from causerie.chat.store import Store
from causerie.chat.stores.redis import RedisStore
from causerie.chat.stores.sqlite import SQLiteStore
from tests.chat.stores.samples import ignore
from tests.support.redis_server import redis_server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
async def empty_redis(redis_url: str) -> str:
    async with Redis.from_url(redis_url) as client:
        await client.flushall()
    return redis_url


@pytest.fixture(params=["file", "memory", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes a store on the same medium each time."""
    if request.param == "redis":
        url = request.getfixturevalue("empty_redis")
        return lambda: RedisStore(url)
    path = ":memory:" if request.param == "memory" else tmp_path / "data" / "store.sqlite3"
    return lambda: SQLiteStore(path)


@pytest.fixture
async def store(make: Callable[[], Store]) -> AsyncIterator[Store]:
    made = make()
    await made.open("one", ignore)
    yield made
    await made.close()


@pytest.fixture
async def reader(make: Callable[[], Store], store: Store) -> AsyncIterator[Store]:
    """Another server that reads what ``store`` writes; itself where only one can."""
    if not store.shared:
        yield store
        return
    made = make()
    await made.open("two", ignore)
    yield made
    await made.close()
