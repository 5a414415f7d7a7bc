"""The Responses and Conversations API through openai-python's typed client, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from causerie.chat.service import ChatService
from causerie.config import Settings
from tests.support.http import send
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until, until_idle

ANSWER = "Ein Löwe 🦁 läuft durch den Wald."
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@asynccontextmanager
async def client_of(service: ChatService) -> AsyncIterator[AsyncOpenAI]:
    async with (
        asyncio.timeout(30),
        running_server(service) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        yield client


def texts(events: Iterable[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def recalling() -> ChatService:
    """Answers with all that it was told."""
    return service_with(lambda prompt: [byte for byte in prompt if byte < 256], settings=Settings(engine="scripted"))


async def test_an_answer_comes_whole() -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        response = await client.responses.create(
            model="default", input="Hi", instructions="Be kind.", metadata={"a": "b"}, user="me"
        )
        assert response.status == "completed" and response.output_text == ANSWER
        assert response.metadata == {"a": "b"} and response.instructions == "Be kind."
        assert response.usage is not None and response.usage.output_tokens == len(ANSWER.encode()) + 1
        Response.model_validate(response.model_dump(), strict=True)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_place_is_never_taken_from_a_header(stream: bool) -> None:
    service = service_with(says(ANSWER))
    async with running_server(service) as url:
        made = await send(url, "POST", "/v1/responses", {"input": "Hi"})
        assert await made.head() == 200
        id_ = (await made.json())["id"]
        path = f"/v1/responses/{id_}?stream={stream}"
        for method, there, body in (("POST", "/v1/responses", {"input": "Hi", "stream": stream}), ("GET", path, b"")):
            answer = await send(url, method, there, body, {"Last-Event-ID": f"{id_}:3"})
            assert await answer.head() == 400
            error = (await answer.json())["error"]
            assert (error["code"], error["param"]) == ("unsupported_parameter", "Last-Event-ID")
            assert "GET /v1/responses/ID?stream=true&starting_after=N" in error["message"]
        assert b"causerie:requests_total 1.0" in service.metrics.render()


async def test_a_stream_has_every_event_in_order_and_each_fits_the_clients_model() -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        stream = await client.responses.create(model="default", input="Hi", stream=True)
        events = [event async for event in stream]
        for event in events:
            EVENT.validate_python(event.model_dump())
        kinds = [event.type for event in events]
        assert kinds[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert kinds[-4:] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert set(kinds[4:-4]) == {"response.output_text.delta"}
        numbers = [event.sequence_number for event in events]
        assert numbers == sorted(set(numbers)) and numbers[0] == 0
        assert texts(events) == ANSWER


async def test_the_clients_own_accumulator_agrees() -> None:
    async with (
        client_of(service_with(says(ANSWER))) as client,
        client.responses.stream(model="default", input="Hi") as stream,
    ):
        assert (await stream.get_final_response()).output_text == ANSWER


async def test_a_response_is_found_again_with_what_it_was_asked() -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        made = await client.responses.create(model="default", input="What is that?")
        found = await client.responses.retrieve(made.id)
        assert found == made
        items = await client.responses.input_items.list(made.id)
        assert [item.content[0].text for item in items.data] == ["What is that?"]  # type: ignore[union-attr,index]
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


async def test_the_next_response_knows_what_was_said_before() -> None:
    async with client_of(recalling()) as client:
        first = await client.responses.create(model="default", input="My name is Ada.")
        second = await client.responses.create(model="default", input="Who am I?", previous_response_id=first.id)
        assert "My name is Ada." in second.output_text and "Who am I?" in second.output_text
        third = await client.responses.create(model="default", input="And?", previous_response_id=first.id)
        assert "Who am I?" not in third.output_text


async def test_instructions_are_not_handed_on() -> None:
    async with client_of(recalling()) as client:
        first = await client.responses.create(model="default", input="Hi", instructions="Speak Latin.")
        assert "Speak Latin." in first.output_text
        second = await client.responses.create(
            model="default", input="Hi", previous_response_id=first.id, instructions="Speak Greek."
        )
        assert second.output_text.count("Speak Greek.") == 1
        # The first answer repeated them, so they are there once as something that was said.
        assert second.output_text.count("Speak Latin.") == 1


async def test_a_conversation_keeps_its_items() -> None:
    async with client_of(recalling()) as client:
        conversation = await client.conversations.create(
            items=[{"role": "user", "content": "I am Ada."}], metadata={"topic": "names"}
        )
        answer = await client.responses.create(model="default", input="Who am I?", conversation=conversation.id)
        assert "I am Ada." in answer.output_text
        page = await client.conversations.items.list(conversation.id, order="asc")
        assert [item.role for item in page.data] == ["user", "user", "assistant"]  # type: ignore[union-attr]
        assert answer.conversation is not None and answer.conversation.id == conversation.id
        again = await client.responses.create(model="default", input="Still?", conversation=conversation.id)
        assert "Who am I?" in again.output_text
        await client.conversations.update(conversation.id, metadata={"topic": "other"})
        assert (await client.conversations.retrieve(conversation.id)).metadata == {"topic": "other"}
        await client.conversations.delete(conversation.id)
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(conversation.id)


async def test_a_background_response_runs_alone_and_can_be_read_from_any_number() -> None:
    permits = Permits()
    async with client_of(service_with(says(ANSWER), permits=permits.semaphore)) as client:
        made = await client.responses.create(model="default", input="Hi", background=True)
        assert made.status in ("queued", "in_progress") and made.background
        permits.give(10)
        stream = await client.responses.retrieve(made.id, stream=True)
        had = []
        async for event in stream:
            had.append(event)
            if len(texts(had)) >= 2:
                break
        await stream.close()
        permits.give(1000)
        rest = [
            event
            async for event in await client.responses.retrieve(
                made.id, stream=True, starting_after=had[-1].sequence_number
            )
        ]
        assert texts(had + rest) == ANSWER and rest[-1].type == "response.completed"
        assert (await client.responses.retrieve(made.id)).output_text == ANSWER


async def test_every_number_of_a_kept_response_gives_exactly_the_rest() -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        stream = await client.responses.create(model="default", input="Hi", stream=True)
        events = [event async for event in stream]
        id_ = events[0].response.id  # type: ignore[union-attr]
        whole = [event async for event in await client.responses.retrieve(id_, stream=True)]
        assert texts(whole) == texts(events) == ANSWER
        assert [one for one in whole if "delta" not in one.type] == [one for one in events if "delta" not in one.type]
        for index, event in enumerate(whole):
            rest = await client.responses.retrieve(id_, stream=True, starting_after=event.sequence_number)
            assert [event async for event in rest] == whole[index + 1 :]


async def test_a_running_response_can_be_cancelled_by_its_id_and_keeps_what_it_said() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        stream = await client.responses.create(model="default", input="Hi", stream=True, max_output_tokens=8000)
        events = aiter(stream)
        first = await anext(events)
        while (await anext(events)).type != "response.output_text.delta":
            pass
        cancelled = await client.responses.cancel(first.response.id)  # type: ignore[union-attr]
        assert cancelled.status == "cancelled"
        rest = [event async for event in events]
        assert rest[-1].type == "response.incomplete" and rest[-1].response.status == "cancelled"
        assert rest[-1].response.output_text == cancelled.output_text != ""
        await until_idle(service)


async def test_a_client_that_leaves_ends_it_and_what_was_said_is_kept() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with running_server(service) as url:
        body = {"input": "Hi", "stream": True, "max_output_tokens": 8000}
        response = await send(url, "POST", "/v1/responses", body)
        await response.head()
        created = await response.chunk()
        id_ = created.split(b'"id":"')[1].split(b'"')[0].decode()
        await response.chunk()
        response.reset()
        await until_idle(service, 2.0)
        found = await send(url, "GET", f"/v1/responses/{id_}")
        await found.head()
        body_ = await found.json()
        assert body_["status"] == "cancelled" and set(body_["output"][0]["content"][0]["text"]) == {"a"}


async def test_what_is_not_to_be_kept_is_not() -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        made = await client.responses.create(model="default", input="Hi", store=False)
        assert made.output_text == ANSWER
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


async def test_two_responses_of_one_conversation_do_not_run_at_once() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        conversation = await client.conversations.create()
        first = await client.responses.create(
            model="default", input="a", conversation=conversation.id, background=True, max_output_tokens=8000
        )
        with pytest.raises(openai.ConflictError) as refused:
            await client.responses.create(model="default", input="b", conversation=conversation.id)
        assert refused.value.code == "conversation_locked"
        await client.responses.cancel(first.id)
        items = await client.conversations.items.list(conversation.id, order="asc")
        assert [item.role for item in items.data] == ["user", "assistant"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"previous_response_id": "resp_none"}, 400, "previous_response_not_found"),
        ({"conversation": "conv_none"}, 404, "conversation_not_found"),
        ({"previous_response_id": "a", "conversation": "b"}, 400, "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, 400, "unsupported_parameter"),
        ({"store": False, "background": True}, 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], status: int, code: str) -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.responses.create(model="default", input="Hi", **fields)
        assert refused.value.status_code == status and refused.value.code == code


@pytest.mark.parametrize("header", ["cancel", "grace(30)"])
async def test_a_header_that_would_end_a_background_response_is_refused_by_its_name(header: str) -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        made = {"model": "default", "input": "Hi", "background": True}
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(**made, extra_headers={"X-On-Disconnect": header})  # type: ignore[call-overload]
        assert refused.value.param == "X-On-Disconnect"
        kept = await client.responses.create(**made, extra_headers={"X-On-Disconnect": "continue"})  # type: ignore[call-overload]
        assert kept.background


async def test_a_running_response_and_a_deleted_parent_cannot_be_continued() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        running = await client.responses.create(model="default", input="a", background=True, max_output_tokens=8000)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="default", input="b", previous_response_id=running.id)
        assert refused.value.code == "previous_response_running"
        await client.responses.cancel(running.id)
        child = await client.responses.create(
            model="default", input="b", previous_response_id=running.id, max_output_tokens=3
        )
        assert child.status == "incomplete" and child.incomplete_details is not None
        await client.responses.delete(running.id)
        with pytest.raises(openai.BadRequestError) as gone:
            await client.responses.create(model="default", input="c", previous_response_id=child.id)
        assert gone.value.code == "previous_response_not_found"


async def test_deleting_a_running_response_stops_it() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        made = await client.responses.create(model="default", input="a", background=True, max_output_tokens=8000)
        await until(lambda: service.running)
        await client.responses.delete(made.id)
        await until_idle(service)
        await asyncio.sleep(0)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
