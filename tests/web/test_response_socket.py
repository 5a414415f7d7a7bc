"""The Responses API's WebSocket mode through openai-python's own connection and its lanes, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI
from openai.lib.responses_websocket import AsyncResponsesWebSocketSession, ResponsesWebSocketLimits
from openai.resources.responses.responses import AsyncResponsesConnection

from causerie.wire.response_socket import MAX_LANES
from tests.support.response_socket import EVENT, TERMINALS, connected, recalling, text_of, to_end, until_type
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until, until_idle

ANSWER = "Ein Löwe 🦁 läuft durch den Wald."
LANES = ResponsesWebSocketLimits(
    max_lanes=40, max_events_per_lane=10_000, max_events=40_000, max_bytes_per_lane=2**24, max_bytes=2**26
)


async def test_a_response_comes_with_every_event_under_a_rising_number() -> None:
    async with connected(service_with(says(ANSWER))) as (client, connection):
        await connection.response.create(model="default", input="Hi")
        events = await to_end(connection)
        kinds = [event.type for event in events]
        assert kinds[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert kinds[-1] == "response.completed" and text_of(events) == ANSWER
        numbers = [event.sequence_number for event in events]
        assert numbers == sorted(set(numbers)) and numbers[0] == 0
        assert events[-1].response.output_text == ANSWER
        assert (await client.responses.retrieve(events[-1].response.id)).output_text == ANSWER


async def test_turns_go_on_by_id_also_where_nothing_is_stored() -> None:
    async with connected(recalling()) as (client, connection):
        ids: list[str] = []
        for number in range(3):
            await connection.response.create(
                model="default", input=f"Turn {number}.", store=False, previous_response_id=ids[-1] if ids else None
            )
            events = await to_end(connection)
            ids.append(events[-1].response.id)
            assert text_of(events).count("Turn 0.") == 2**number
        async with client.responses.connect() as other:
            await other.response.create(model="default", input="Hi", store=False, previous_response_id=ids[-1])
            error = await other.recv()
            assert error.type == "error" and error.error.code == "previous_response_not_found"
        await connection.response.create(model="default", input="Hi", previous_response_id=ids[-1])
        error = await connection.recv()
        assert error.type == "error" and error.error.param == "store"


async def test_what_was_prepared_is_continued_and_its_prompt_is_in_the_cache() -> None:
    async with connected(recalling()) as (_, connection):
        for store in (True, False):
            await connection.response.create(
                model="default", input=f"A tale of {store} long words. " * 20, generate=False, store=store
            )
            events = await to_end(connection)
            assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
            prepared = events[-1].response
            assert events[-1].type == "response.completed" and prepared.output == []
            assert prepared.usage.output_tokens == 0 and prepared.usage.input_tokens > 500
            await connection.response.create(
                model="default", input="And?", previous_response_id=prepared.id, store=store
            )
            done = (await to_end(connection))[-1].response
            assert f"A tale of {store}" in done.output_text
            assert done.usage.input_tokens_details.cached_tokens > 500


async def test_lanes_run_at_once_each_in_order_and_fork_from_one_parent() -> None:
    async with connected(recalling()) as (_, connection):
        await connection.response.create(model="default", input="I am Ada.")
        parent = (await to_end(connection))[-1].response.id
        async with AsyncResponsesWebSocketSession(connection, limits=LANES) as session:
            lanes = [session.lane(f"lane.{number}") for number in range(MAX_LANES)]
            for number, lane in enumerate(lanes):
                await lane.send({"type": "response.create", "input": f"Fork {number}!", "previous_response_id": parent})
            for number, lane in enumerate(lanes):
                response = await lane.get_final_response()
                assert "I am Ada." in response.output_text and f"Fork {number}!" in response.output_text


async def test_creates_on_one_lane_wait_for_their_turn() -> None:
    permits = Permits()
    async with connected(service_with(says("ab"), permits=permits.semaphore)) as (_, connection):
        for number in range(3):
            await connection.response.create(model="default", input="Hi", stream_id="a", metadata={"n": str(number)})
        permits.give(100)
        for number in range(3):
            events = await to_end(connection)
            assert {event.stream_id for event in events} == {"a"}
            assert events[0].type == "response.created" and events[-1].response.metadata == {"n": str(number)}


async def test_a_lane_too_many_is_refused_by_name_and_the_socket_goes_on() -> None:
    async with connected(service_with(says("ok"))) as (_, connection):
        for number in range(MAX_LANES + 1000):
            await connection.response.create(model="default", input="Hi", stream_id=f"s{number}")
        ended: set[str] = set()
        refused = 0
        while len(ended) < MAX_LANES or refused < 1000:
            event = await connection.recv()
            if event.type == "error":
                assert event.error.code == "websocket_stream_limit_reached" and event.status == 400
                refused += 1
            elif event.type in TERMINALS:
                ended.add(str(event.stream_id))
        await connection.response.create(model="default", input="Hi", stream_id="s0")
        assert text_of(await to_end(connection)) == "ok"


async def test_steering_ends_the_response_and_a_successor_goes_on_from_what_was_said() -> None:
    permits = Permits()
    seen: list[str] = []

    def script(prompt: Any) -> Any:
        seen.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
        return endless(prompt) if len(seen) == 1 else b"Blue."

    async with connected(service_with(script, permits=permits.semaphore)) as (client, connection):
        await connection.response.create(
            model="default", input="Name a colour.", instructions="Be brief.", metadata={"a": "b"}
        )
        permits.give(5)
        target = (await until_type(connection, "response.created")).response.id
        said = ""
        while len(said) < 5:
            said += (await until_type(connection, "response.output_text.delta")).delta
        await connection.response.steer(previous_response_id=target, input="A cold one.")
        accepted = await connection.recv()
        assert accepted.type == "response.steer.accepted" and accepted.steer.previous_response_id == target
        EVENT.validate_python(accepted.model_dump())
        steered = await until_type(connection, "response.incomplete")
        assert steered.response.incomplete_details.reason == "steered"
        assert steered.response.output_text == "aaaaa"
        created = await connection.recv()
        assert created.type == "response.created" and created.response.previous_response_id == target
        assert created.response.metadata == {"a": "b"} and created.response.instructions == "Be brief."
        permits.give(100)
        assert text_of(await to_end(connection)) == "Blue."
        assert "aaaaa" in seen[1] and "A cold one." in seen[1] and "Be brief." in seen[1]
        kept = await client.responses.retrieve(target)
        assert kept.status == "incomplete" and kept.output_text == "aaaaa"


async def steering_error(connection: AsyncResponsesConnection, target: str, value: Any = "More.") -> str:
    await connection.send({"type": "response.steer", "previous_response_id": target, "input": value})
    failed = await until_type(connection, "response.steer.failed")
    if isinstance(value, str):
        EVENT.validate_python(failed.model_dump())
    assert failed.steer.previous_response_id == target
    code: str = failed.error.code
    return code


async def test_steering_what_cannot_be_steered_says_why() -> None:
    permits = Permits()
    async with connected(service_with(endless, permits=permits.semaphore)) as (client, connection):
        assert await steering_error(connection, "resp_none") == "response_not_found"
        conversation = await client.conversations.create()
        await connection.response.create(model="default", input="Hi", conversation=conversation.id)
        bound = (await until_type(connection, "response.created")).response.id
        assert await steering_error(connection, bound) == "steering_not_supported"
        await connection.send({"type": "response.cancel", "response_id": bound})  # type: ignore[arg-type]
        cancelled = await until_type(connection, "response.incomplete")
        assert cancelled.response.status == "cancelled"
        assert await steering_error(connection, bound) == "response_not_active"
        await connection.response.create(model="default", input="Hi", max_output_tokens=2)
        target = (await until_type(connection, "response.created")).response.id
        for bad in ("", [], 5, [{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "x"}]}]):
            assert await steering_error(connection, target, bad) == "invalid_input"
        permits.give(10)
        await until_type(connection, "response.incomplete")
        await connection.response.create(model="default", input="Hi", store=False, generate=False)
        prepared = (await to_end(connection))[-1].response.id
        assert await steering_error(connection, prepared) == "response_already_completed"


async def test_a_steered_response_that_ends_by_itself_has_a_successor_all_the_same() -> None:
    async with connected(service_with(says("a" * 50), step_seconds=0.001)) as (_, connection):
        for _ in range(5):
            await connection.response.create(model="default", input="Hi")
            target = (await until_type(connection, "response.created")).response.id
            await connection.response.steer(previous_response_id=target, input="More.")
            await connection.response.steer(previous_response_id=target, input="And more.")
            events = await to_end(connection)
            assert [event.type for event in events].count("response.steer.accepted") == 2
            assert (await connection.recv()).response.previous_response_id == target  # type: ignore[union-attr]
            assert (await to_end(connection))[-1].type == "response.completed"


async def test_leaving_cancels_what_runs_unless_it_may_go_on() -> None:
    service = service_with(endless, step_seconds=0.005)
    async with connected(service) as (client, connection):
        await connection.response.create(model="default", input="Hi", stream_id="a")
        await connection.send(
            {  # type: ignore[arg-type]
                "type": "response.create",
                "input": "Hi",
                "stream_id": "b",
                "on_disconnect": "continue",
                "max_output_tokens": 50,
            }
        )
        ids: dict[str, str] = {}
        while len(ids) < 2:
            event = await connection.recv()
            if event.type == "response.created":
                assert event.stream_id is not None
                ids[event.stream_id] = event.response.id
        connection._connection.transport.abort()
        await until_idle(service)
        assert (await client.responses.retrieve(ids["a"])).status == "cancelled"
        assert (await client.responses.retrieve(ids["b"])).output_text == "a" * 50


async def test_the_client_reconnects_and_goes_on_from_what_is_stored() -> None:
    async with (
        asyncio.timeout(30),
        running_server(recalling()) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        client.responses.connect(on_reconnecting=lambda _: None, initial_delay=0.01) as connection,
    ):
        await connection.response.create(model="default", input="I am Ada.")
        first = (await to_end(connection))[-1].response.id
        events = aiter(connection)
        connection._connection.transport.abort()
        waiting = asyncio.ensure_future(anext(events))
        before = connection._connection
        await until(lambda: connection._connection is not before)
        await connection.response.create(model="default", input="Who am I?", previous_response_id=first)
        assert (await waiting).type == "response.created"
        async for event in events:
            if event.type in TERMINALS:
                assert "I am Ada." in event.response.output_text  # type: ignore[union-attr]
                break


async def test_what_waits_on_a_lane_is_bounded() -> None:
    permits = Permits()
    async with connected(service_with(says("ab"), permits=permits.semaphore)) as (_, connection):
        for _ in range(30):
            await connection.response.create(model="default", input="Hi")
        error = await until_type(connection, "error")
        assert error.status == 429 and error.error.code == "overloaded"
        permits.give(10_000)
        ended = 0
        while ended < 17:
            ended += (await connection.recv()).type in TERMINALS
