"""What a client has shown counts at whichever server it says so, of those that share a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from tests.support.http import send
from tests.support.redis_server import redis_server
from tests.support.service import says
from tests.web.test_acknowledgement import TALK, ack
from tests.web.test_framed_chat import Framed, framed, said_in, text_of
from tests.web.test_resume_elsewhere import Two, two_servers


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@asynccontextmanager
async def talking(redis_url: str) -> AsyncIterator[tuple[Two, str, str, int]]:
    """Two servers; an answer that the first one generates, of which six characters were sent to a client that is gone.

    With it its conversation, its id and the number of its last event.
    """
    async with Redis.from_url(redis_url, protocol=2) as redis:
        await redis.flushall()
    async with two_servers(redis_url, says(TALK * 20)) as two:
        async with framed(two.here) as chat:
            await chat.say("Talk.")
            id_ = (await chat.event("response.created"))["response"]["id"]
            two.permits.give(len(TALK[:6].encode()))
            said, number = await chat.heard(6)
            assert said == TALK[:6]
            chat.socket.transport.abort()
        yield two, chat.conversation, id_, number
        two.permits.give(1000)


async def on_the_socket(two: Two, again: Framed, client: AsyncOpenAI, id_: str) -> None:
    await again.say("Stop!", max_output_tokens=3)


async def over_http(two: Two, again: Framed, client: AsyncOpenAI, id_: str) -> None:
    await client.responses.cancel(id_)


@pytest.mark.parametrize("interrupt", [on_the_socket, over_http])
async def test_an_answer_keeps_what_was_acknowledged_at_another_server(redis_url: str, interrupt: Any) -> None:
    async with talking(redis_url) as (two, conversation, id_, number):
        query = f"?conversation={conversation}&response={id_}&starting_after={number}"
        async with framed(two.there, query) as again, AsyncOpenAI(base_url=f"{two.there}/v1", api_key="x") as client:
            await ack(again, id_, sequence_number=number)
            two.permits.give(len(TALK[6:].encode()))
            said, last = await again.heard(len(TALK) - 6)
            assert said == TALK[6:]
            await ack(again, id_, sequence_number=last - 5)
            await ack(again, id_, text_end=len(TALK) - 2)
            await interrupt(two, again, client, id_)
            end = await again.end()
            assert (end["status"], text_of(end)) == ("cancelled", TALK[:-2])
            for url in (two.here, two.there):
                async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as each:
                    assert (await each.responses.retrieve(id_)).output_text == TALK[:-2]
                    assert (await said_in(each, conversation))[:2] == [("user", "Talk."), ("assistant", TALK[:-2])]


async def test_a_bad_acknowledgement_at_another_server_is_named_and_changes_nothing(redis_url: str) -> None:
    async with talking(redis_url) as (two, conversation, id_, number):

        async def told(body: Any, url: str = two.there) -> tuple[int, Any]:
            answer = await send(url, "POST", f"/v1/responses/{id_}/ack", body)
            status, found = await answer.head(), await answer.json()
            return status, found.get("error", {}).get("code", found.get("text_end"))

        assert await told({"text_end": 7}) == (400, "invalid_value")
        assert await told({"sequence_number": number + 1}) == (400, "invalid_value")
        assert await told({"sequence_number": number}) == (200, 6)
        query = f"?conversation={conversation}&response={id_}&starting_after={number}"
        async with framed(two.there, query) as again:
            two.permits.give(len(TALK[6].encode()))
            await again.heard(1)
            await ack(again, id_, text_end=5)
            assert (await again.event("error"))["error"]["param"] == "text_end"
            assert await told({"text_end": 5}) == (400, "invalid_value")
            assert await told({"text_end": 7}, two.here) == (200, 7)
            # The one that generates knows better what another was told.
            await ack(again, id_, text_end=6)
            await again.say("Stop!", max_output_tokens=3)
            assert text_of(await again.end()) == TALK[:7]
        assert await told({"text_end": 7}) == (400, "response_not_active")
