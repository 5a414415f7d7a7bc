"""Turns of a conversation that several servers may add to, and streams that they may all read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import pytest

from causerie.chat.archive import Archive
from causerie.chat.log import read_out
from causerie.chat.records import Item, ResponseRecord
from causerie.chat.store import End, Retention, Write
from causerie.chat.stores.redis import RedisStore
from causerie.errors import ConversationBusy, DuplicateRequest
from causerie.types import Finished, GenerationRequest, OnDisconnect, SamplingParams, TextPrompt
from causerie.wire.responses_request import ResponseCall, parse_response
from causerie.wire.sampling import Limits
from tests.chat.stores.samples import conversation, user
from tests.support.service import says, service_with, until_idle


def call() -> ResponseCall:
    return parse_response(orjson.dumps({"input": "Hi", "conversation": "c1"}), Limits("m", 64, 4, 256, 9000))


class Late(RedisStore):
    """Begins once another server has added something to the conversation."""

    meanwhile: Sequence[Item] = ()

    async def begin(self, record: ResponseRecord, behind: str | None = None) -> None:
        if self.meanwhile:
            await self.add_items("ada", "c1", self.meanwhile)
        await super().begin(record, behind)


@pytest.mark.parametrize("before", [[], [user("i1"), user("i2")]])
async def test_only_what_another_server_added_makes_a_conversation_busy(empty_redis: str, before: list[Item]) -> None:
    service = service_with(says("Yes"))
    await service.start()
    store = Late(empty_redis)
    archive = Archive(service, store, Retention(None, None))
    await archive.start()
    await store.create_conversation(conversation(), before)
    async with asyncio.timeout(10):
        first = await archive.create("ada", call())
        await read_out(first.log.reader())
        store.meanwhile = [user("i3")]
        with pytest.raises(ConversationBusy):
            await archive.create("ada", call(), id_="refused")
        assert await store.response("ada", "refused") is None
        found = [item.id for item in (await store.items("ada", "c1")).items]
        assert found[-1] == "i3" and len(found) == len(before) + 3
    await until_idle(service)
    await service.stop()
    await archive.stop()


class SlowToEnd(RedisStore):
    """Keeps an end when the test lets it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.gate = asyncio.Event()

    async def write(self, writes: Sequence[Write]) -> None:
        if any(isinstance(write, End) for write in writes):
            await self.gate.wait()
        await super().write(writes)


async def test_an_id_that_comes_again_before_its_streams_end_is_kept_changes_nothing(empty_redis: str) -> None:
    service = service_with(says("Yes"))
    await service.start()
    store = SlowToEnd(empty_redis)
    archive = Archive(service, store, Retention(None, None))
    await archive.start()
    request = GenerationRequest("x", TextPrompt("Hi"), SamplingParams(9), owner="ada", on_disconnect=OnDisconnect(None))
    async with asyncio.timeout(10):
        log = await archive.graced.create(request)
        await until_idle(service)
        with pytest.raises(DuplicateRequest):
            await archive.graced.create(request)
        store.gate.set()
        *_, (_, end) = [numbered async for numbered in log.reader()]
        assert isinstance(end, Finished)
        found = await archive.graced.find("ada", "x")
        assert found.history == log.history()
        assert not archive.graced._live and len(archive.graced._ended) == 1
    await service.stop()
    await archive.stop()
