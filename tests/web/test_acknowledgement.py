"""A client that says what it has shown: an interrupted answer keeps that, on every way to interrupt it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect

from causerie.chat.service import ChatService
from tests.support.http import send
from tests.support.response_socket import serving
from tests.support.service import Permits, says, service_with, until_idle
from tests.web.test_framed_chat import Framed, framed, said_in, text_of

TALK = "Grüße 🦁, wie geht's? "


class Talker:
    """Says ``TALK`` many times over to the first turn, a byte a step, and "ok" to all others."""

    def __init__(self) -> None:
        self.permits = Permits()
        self.prompts: list[str] = []
        self.service: ChatService = service_with(self._script, permits=self.permits.semaphore)

    def _script(self, prompt: Sequence[int]) -> bytes:
        self.prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
        return TALK.encode() * 20 if len(self.prompts) == 1 else b"ok"

    async def begin(self, chat: Framed, characters: int = len(TALK), **fields: Any) -> tuple[str, int]:
        """The response's id, and the number of its last event, when so much of it has been delivered."""
        await chat.say("Talk.", **fields)
        id_: str = (await chat.event("response.created"))["response"]["id"]
        self.permits.give(len(TALK[:characters].encode()))
        said, number = await chat.heard(characters)
        assert said == TALK[:characters]
        return id_, number


async def ack(chat: Framed, id_: Any, **fields: Any) -> None:
    await chat.socket.send(json.dumps({"type": "response.ack", "response_id": id_} | fields))


async def barge_in(chat: Framed, client: AsyncOpenAI, id_: str) -> dict[str, Any]:
    await chat.say("Stop!")
    return await chat.end()


async def cancel(chat: Framed, client: AsyncOpenAI, id_: str) -> dict[str, Any]:
    await chat.socket.send(json.dumps({"type": "response.cancel", "response_id": id_}))
    return await chat.end()


async def cancel_over_http(chat: Framed, client: AsyncOpenAI, id_: str) -> dict[str, Any]:
    await client.responses.cancel(id_)
    return await chat.end()


async def leave(chat: Framed, client: AsyncOpenAI, id_: str) -> dict[str, Any]:
    # What comes before an answered frame has been taken in.
    await chat.socket.send('{"type": "no such"}')
    await chat.event("error")
    chat.socket.transport.abort()
    stream = await client.responses.retrieve(id_, stream=True)
    return [event async for event in stream][-1].response.model_dump(mode="json")  # type: ignore[union-attr]


@pytest.mark.parametrize("interrupt", [barge_in, cancel, cancel_over_http, leave])
@pytest.mark.parametrize("shown", [0, 1, 7, len(TALK) - 1])
async def test_what_is_kept_of_an_interrupted_answer_is_what_was_shown(interrupt: Any, shown: int) -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client):
        async with framed(url) as chat:
            conversation = chat.conversation
            id_, _ = await talker.begin(chat, on_disconnect="cancel")
            await ack(chat, id_, text_end=min(shown, 3))
            await ack(chat, id_, text_end=shown)
            response = await interrupt(chat, client, id_)
        assert (response["status"], text_of(response)) == ("cancelled", TALK[:shown])
        talker.permits.give(1000)
        kept = (await client.responses.retrieve(id_)).model_dump(mode="json")
        assert text_of(kept) == TALK[:shown] and kept["usage"]["output_tokens"] >= len(TALK.encode())
        async with framed(url, f"?conversation={conversation}&on_turn=queue") as again:
            await again.say("And?")
            await again.end()
        said = [text for role, text in await said_in(client, conversation) if role == "assistant" and text != "ok"]
        assert said == ([TALK[:shown]] if shown else [])
        assert TALK[:shown] in talker.prompts[-1] and TALK[: shown + 1] not in talker.prompts[-1]


async def test_events_are_acknowledged_by_their_numbers() -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client), framed(url) as chat:
        id_, first = await talker.begin(chat, 1)
        await ack(chat, id_, sequence_number=first)
        talker.permits.give(3)
        said, then = await chat.heard(2)
        await ack(chat, id_, sequence_number=then)
        await ack(chat, id_, sequence_number=then)
        talker.permits.give(5)
        await chat.heard(3)
        assert text_of(await barge_in(chat, client, id_)) == TALK[:1] + said
        talker.permits.give(1000)


async def test_the_log_keeps_what_was_delivered_and_its_end_says_what_is_kept() -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client), framed(url) as chat:
        id_, number = await talker.begin(chat)
        await ack(chat, id_, text_end=4)
        await cancel(chat, client, id_)
        for after in (None, number - 3, number):
            options: dict[str, Any] = {} if after is None else {"starting_after": after}
            stream = await client.responses.retrieve(
                id_, stream=True, include=["message.output_text.logprobs"], **options
            )
            events = [event async for event in stream]
            deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            assert TALK.endswith(deltas) and (deltas == TALK) == (after is None)
            (done,) = [event for event in events if event.type == "response.output_text.done"]
            assert done.text == TALK[:4]
            assert events[-1].type == "response.incomplete" and events[-1].response.output_text == TALK[:4]
        talker.permits.give(1000)


async def test_a_whole_answer_is_kept_whole_whatever_was_acknowledged() -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client), framed(url) as chat:
        id_, number = await talker.begin(chat)
        await ack(chat, id_, sequence_number=number - 3)
        await ack(chat, id_, text_end=0)  # Its answer says that the one before was taken in.
        assert (await chat.event("error"))["error"]["code"] == "invalid_value"
        talker.permits.give(5000)
        response = await chat.end()
        assert (response["status"], text_of(response)) == ("completed", TALK * 20)
        await ack(chat, id_, text_end=10)
        assert (await chat.event())["error"]["code"] == "response_not_active"
        assert (await said_in(client, chat.conversation))[-1] == ("assistant", TALK * 20)


async def test_the_next_turn_begins_with_the_ids_of_what_was_kept() -> None:
    permits = Permits()
    service = service_with(says("a" * 400), permits=permits.semaphore)
    async with serving(service) as (url, client):
        async with framed(url) as chat:
            await chat.say("b" * 300)
            id_ = (await chat.event("response.created"))["response"]["id"]
            permits.give(300)
            await chat.heard(250)
            await ack(chat, id_, text_end=200)
            assert text_of(await cancel(chat, client, id_)) == "a" * 200
            permits.give(5000)
            await until_idle(service)
            await chat.say("And?")
            response = await chat.end()
        # It begins with the remembered ids, or the history would have changed; this engine caches whole answers only.
        assert response["prompt_cache_diagnostics"] == {"type": "unavailable", "cause": "evicted"}


async def test_a_steered_answer_goes_on_from_what_was_shown() -> None:
    talker = Talker()
    async with serving(talker.service) as (url, _), connect(url.replace("http", "ws") + "/v1/responses") as socket:
        chat = Framed(socket)
        id_, _ = await talker.begin(chat)
        await ack(chat, id_, text_end=5)
        await socket.send(json.dumps({"type": "response.steer", "previous_response_id": id_, "input": "In English."}))
        assert (await chat.event())["type"] == "response.steer.accepted"
        talker.permits.give(1000)
        steered, successor = await chat.end(), await chat.end()
        assert text_of(steered) == TALK[:5] and steered["incomplete_details"] == {"reason": "steered"}
        assert text_of(successor) == "ok"
        assert TALK[:5] in talker.prompts[-1] and TALK[:6] not in talker.prompts[-1]


async def test_an_answer_that_is_not_stored_goes_on_from_what_was_shown() -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client), connect(url.replace("http", "ws") + "/v1/responses") as socket:
        chat = Framed(socket)
        id_, _ = await talker.begin(chat, store=False)
        await ack(chat, id_, text_end=5)
        assert text_of(await cancel(chat, client, id_)) == TALK[:5]
        talker.permits.give(1000)
        await chat.say("And?", store=False, previous_response_id=id_)
        await chat.end()
        assert TALK[:5] in talker.prompts[-1] and TALK[:6] not in talker.prompts[-1]


async def test_what_was_acknowledged_holds_on_the_next_socket() -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client):
        async with framed(url) as chat:
            id_, number = await talker.begin(chat, 6)
            await ack(chat, id_, text_end=3)
            chat.socket.transport.abort()
        async with framed(url, f"?conversation={chat.conversation}&response={id_}&starting_after={number}") as again:
            await ack(again, id_, text_end=2)
            assert (await again.event())["error"]["param"] == "text_end"
            await ack(again, id_, sequence_number=number)
            assert text_of(await barge_in(again, client, id_)) == TALK[:6]
            talker.permits.give(1000)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_id": "resp_none"}, "response_not_found", "response_id"),
        ({"response_id": None}, "invalid_value", "response_id"),
        ({"response_id": 5}, "invalid_value", "response_id"),
        ({"text_end": None}, "invalid_value", "sequence_number"),
        ({"sequence_number": 1}, "invalid_value", "text_end"),
        ({"text_end": 7}, "invalid_value", "text_end"),
        ({"text_end": 2}, "invalid_value", "text_end"),
        ({"text_end": -1}, "invalid_value", "text_end"),
        ({"text_end": True}, "invalid_value", "text_end"),
        ({"text_end": 3.0}, "invalid_value", "text_end"),
        ({"text_end": "3"}, "invalid_value", "text_end"),
        ({"text_end": 2**70}, "invalid_value", "text_end"),
        ({"text_end": None, "sequence_number": 10**6}, "invalid_value", "sequence_number"),
        ({"text_end": None, "sequence_number": 0}, "invalid_value", "sequence_number"),
        ({"text_end": None, "sequence_number": "9"}, "invalid_value", "sequence_number"),
        ({"item_id": "msg_1"}, "unsupported_parameter", "item_id"),
    ],
)
async def test_a_bad_acknowledgement_is_named_and_changes_nothing(
    fields: dict[str, Any], code: str, param: str
) -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client), framed(url) as chat:
        id_, _ = await talker.begin(chat, 6)
        await ack(chat, id_, text_end=3)
        await ack(chat, id_, **{"text_end": 4} | fields)
        error = (await chat.event())["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert text_of(await barge_in(chat, client, id_)) == TALK[:3]
        talker.permits.give(1000)
        assert text_of(await chat.end()) == "ok"


async def test_acknowledged_over_http() -> None:
    talker = Talker()
    async with serving(talker.service) as (url, client), framed(url) as chat:

        async def told(id_: str, body: Any) -> tuple[int, Any]:
            answer = await send(url, "POST", f"/v1/responses/{id_}/ack", body)
            status, found = await answer.head(), await answer.json()
            return status, found.get("error", {}).get("code", found)

        id_, number = await talker.begin(chat, 6)
        assert await told("resp_none", {"text_end": 1}) == (404, "response_not_found")
        assert await told(id_, {"text_end": 100}) == (400, "invalid_value")
        assert await told(id_, {}) == (400, "invalid_value")
        assert await told(id_, {"text_end": 1, "x": 1}) == (400, "unsupported_parameter")
        kept = {"id": id_, "object": "response.ack", "text_end": 5}
        assert await told(id_, {"text_end": 5}) == (200, kept)
        assert await told(id_, {"sequence_number": number}) == (200, kept | {"text_end": 6})
        assert await told(id_, {"text_end": 5}) == (400, "invalid_value")
        assert text_of(await cancel(chat, client, id_)) == TALK[:6]
        talker.permits.give(1000)
        assert await told(id_, {"text_end": 6}) == (400, "response_not_active")
