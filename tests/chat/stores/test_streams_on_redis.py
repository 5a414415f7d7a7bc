"""A response that another server generates, read over real sockets, when no more of it can be read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseErrorEvent, ResponseTextDeltaEvent
from openai.types.responses.responses_server_event import ResponsesServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from causerie.chat.archive import Archive
from causerie.chat.store import Append, Retention
from causerie.chat.stores.redis import RedisStore
from causerie.client.retry import picked_up
from causerie.client.server import Patience, Server
from causerie.client.streams import ResponseStream
from causerie.web.framed_chat import FRAMED
from tests.chat.stores.samples import ANSWER, conversation, ignore, record, writes
from tests.support.redis_server import redis_server
from tests.support.server import running_server
from tests.support.service import says, service_with

LEASE = 2.0
"""A follower learns within it that its response was deleted."""


class Elsewhere:
    """A server over a Redis in which another one has said something of ``r1``."""

    def __init__(self, url: str, other: RedisStore, redis: AsyncExitStack) -> None:
        self.url = url
        self._other = other
        self._redis = redis

    async def delete(self) -> str:
        await self._other.delete_response("", "r1")
        return "response_not_found"

    async def say_the_rest(self) -> None:
        await self._other.write(writes("r1", ANSWER[-1:], before=ANSWER[:-1]))

    async def hang_up_on_followers(self) -> None:
        redis, followers = self._other._calls.redis, list[str]()
        while not followers:
            followers = [client["id"] for client in await redis.client_list() if client["cmd"] == "xread"]
        for id_ in followers:
            await redis.client_kill_filter(_id=id_)

    async def lose_redis(self) -> str:
        await self._redis.aclose()
        return "store_unavailable"


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    async with asyncio.timeout(30), _served() as made:
        yield made


@asynccontextmanager
async def _served() -> AsyncIterator[Elsewhere]:
    async with AsyncExitStack() as redis:
        reference = redis.enter_context(redis_server())
        other, service = RedisStore(reference, lease=LEASE), service_with(says("Yes"))
        async with running_server(service, Archive(service, RedisStore(reference), Retention(None, None))) as url:
            await other.open("other", ignore)
            await other.create_conversation(conversation(owner=""), [])
            await other.begin(record(owner="", conversation="c1"))
            await other.write([Append("r1", number, event) for number, event in enumerate(ANSWER[:-1], 1)])
            yield Elsewhere(url, other, redis)
            await other.close()


@pytest.mark.parametrize("fault", [Elsewhere.delete, Elsewhere.lose_redis])
async def test_server_sent_events_end_with_one_error(elsewhere: Elsewhere, fault: Callable[..., Any]) -> None:
    code, events = "", list[Any]()
    async with AsyncOpenAI(base_url=f"{elsewhere.url}/v1", api_key="x", max_retries=0) as client:
        async for event in await client.responses.retrieve("r1", stream=True):
            events.append(event)
            if not code and isinstance(event, ResponseTextDeltaEvent):
                code = await fault(elsewhere)
    *told, error = events
    assert isinstance(error, ResponseErrorEvent) and error.code == code
    assert not any(isinstance(event, ResponseErrorEvent) for event in told)
    assert error.sequence_number == told[-1].sequence_number


async def test_our_client_comes_back_and_is_told_the_rest(elsewhere: Elsewhere) -> None:
    server = Server(elsewhere.url, None, Patience())
    stream = ResponseStream(server, {})
    stream.id, stream._number, told = "r1", 0, ""
    cut = False
    async with asyncio.timeout(30), aclosing(picked_up(stream, server.patience)) as pieces:
        async for piece in pieces:
            told += piece
            if told == "Hé là" and not cut:
                cut = True
                await elsewhere.hang_up_on_followers()
                await elsewhere.say_the_rest()
    await server.aclose()
    assert (told, stream.end is not None) == ("Hé là", True)


@pytest.mark.parametrize("fault", [Elsewhere.delete, Elsewhere.lose_redis])
async def test_a_sockets_stream_ends_with_one_error_and_the_socket_goes_on(
    elsewhere: Elsewhere, fault: Callable[..., Any]
) -> None:
    address = elsewhere.url.replace("http", "ws") + "/?conversation=c1&response=r1&starting_after=5"
    async with connect(address, subprotocols=[Subprotocol(FRAMED)]) as socket:
        events = [json.loads(await socket.recv()) for _ in range(2)]
        assert [event["type"] for event in events] == ["session.created", "response.output_text.delta"]
        code = await fault(elsewhere)
        error = json.loads(await socket.recv())
        assert error["type"] == "error" and error["error"]["code"] == code
        assert error["sequence_number"] == events[-1]["sequence_number"]
        TypeAdapter[Any](ResponsesServerEvent).validate_python(error, strict=True)
        await socket.send('{"type": "response.cancel"}')
        assert json.loads(await socket.recv())["error"]["code"] == "response_not_active"
