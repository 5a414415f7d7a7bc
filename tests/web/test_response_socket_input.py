"""What clients send on a Responses socket: bad frames, and messages that are typed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.resources.responses.responses import AsyncResponsesConnection

from causerie.chat.build import build_archive
from causerie.chat.store import Page
from causerie.config import Settings
from causerie.errors import StoreError
from causerie.wire.response_socket import MAX_WAITING
from tests.support.response_socket import EVENT, TERMINALS, connected, recalling, text_of, to_end, until_type
from tests.support.server import running_server
from tests.support.service import Permits, says, service_with, until

BAD: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "invalid_value"),
    "an array": ("[]", "invalid_value"),
    "no type": ("{}", "invalid_value"),
    "unknown type": ('{"type": "response.crate"}', "invalid_value"),
    "type that is no string": ('{"type": {}}', "invalid_value"),
    "no input": ('{"type": "response.create"}', "invalid_value"),
    "unknown field": ('{"type": "response.create", "input": "Hi", "inptu": 1}', "unsupported_parameter"),
    "other model": ('{"type": "response.create", "input": "Hi", "model": "gpt-9"}', "model_not_found"),
    "background": ('{"type": "response.create", "input": "Hi", "background": true}', "unsupported_parameter"),
    "not streamed": ('{"type": "response.create", "input": "Hi", "stream": false}', "invalid_value"),
    "bad lane": ('{"type": "response.create", "input": "Hi", "stream_id": "a b"}', "invalid_stream_id"),
    "lane that is a number": ('{"type": "response.create", "input": "Hi", "stream_id": 1}', "invalid_stream_id"),
    "unknown parent": (
        '{"type": "response.create", "input": "Hi", "previous_response_id": "resp_1"}',
        "previous_response_not_found",
    ),
    "unknown conversation": (
        '{"type": "response.create", "input": "Hi", "conversation": "conv_1"}',
        "conversation_not_found",
    ),
    "nothing to prepare": ('{"type": "response.create", "generate": false}', "invalid_value"),
    "too long": ('{"type": "response.create", "input": "%s"}' % ("x" * 9000), "context_length_exceeded"),
    "steering nothing": ('{"type": "response.steer", "input": "Hi"}', "invalid_value"),
    "steering with a tower": (
        '{"type": "response.steer", "previous_response_id": "r", "input": %s}' % ("[" * 300 + "]" * 300),
        "invalid_value",
    ),
    "cancelling nothing": ('{"type": "response.cancel"}', "response_not_active"),
    "cancelling what is not there": ('{"type": "response.cancel", "response_id": "resp_1"}', "response_not_found"),
    "commit without a buffer": ('{"type": "input_text_buffer.commit"}', "invalid_value"),
    "truncation without a buffer": ('{"type": "input_text_buffer.truncate", "length": 0}', "invalid_value"),
    "append without text": ('{"type": "input_text_buffer.append"}', "invalid_value"),
    "truncation below zero": ('{"type": "input_text_buffer.truncate", "length": -1}', "invalid_value"),
}


@pytest.mark.parametrize(("frame", "code"), BAD.values(), ids=BAD)
async def test_bad_frame_is_answered_with_a_nested_error_and_the_socket_goes_on(frame: str, code: str) -> None:
    async with connected(service_with(says("ok"))) as (_, connection):
        await connection.send_raw(frame)
        error = await connection.recv()
        assert error.type == "error"
        assert error.error.code == code and error.status is not None and 400 <= error.status < 500
        assert error.error.type and error.error.message and "Traceback" not in error.error.message
        EVENT.validate_python(error.model_dump())
        await connection.response.create(model="default", input="Hi")
        assert text_of(await to_end(connection)) == "ok"


async def typed(connection: AsyncResponsesConnection, event: str, **fields: Any) -> None:
    await connection.send({"type": f"input_text_buffer.{event}", **fields})  # type: ignore[arg-type]


async def test_a_typed_prompt_is_read_ahead_edited_and_answered() -> None:
    async with connected(recalling()) as (_, connection):
        text = "The quick brown fox jumps over the lazy dog. " * 20
        await typed(connection, "append", text=text[:400], response={"instructions": "Repeat.", "store": False})
        await typed(connection, "append", text=text[400:])
        while True:
            fields = (await connection.recv()).model_dump()
            assert fields["type"] == "input_text_buffer.prefilled"
            assert fields["cached_tokens"] <= fields["tokens"]
            if fields["cached_tokens"] > 800:
                break
        await typed(connection, "truncate", length=90)
        await typed(connection, "append", text="The end.")
        await typed(connection, "commit")
        done = (await to_end_skipping(connection))[-1].response
        assert text[:90] + "The end." in done.output_text and "Repeat." in done.output_text
        assert text[:100] not in done.output_text
        assert done.usage.input_tokens_details.cached_tokens >= 64
        await typed(connection, "append", text="Next", response={"previous_response_id": done.id, "store": False})
        await typed(connection, "commit")
        assert "The end." in (await to_end_skipping(connection))[-1].response.output_text


async def to_end_skipping(connection: AsyncResponsesConnection) -> list[Any]:
    events = []
    while True:
        events.append(await connection.recv())
        if events[-1].type in TERMINALS:
            return events
        assert events[-1].type != "error", events[-1]


async def test_the_input_buffer_has_a_cap_and_names_what_is_wrong() -> None:
    service = service_with(says("ok"), settings=Settings(engine="scripted", max_typed_characters=100))
    async with connected(service) as (_, connection):
        await typed(connection, "append", text="x" * 90)

        async def error(wanted: Callable[[], Any]) -> tuple[str | None, str | None]:
            await wanted()
            event = await until_type(connection, "error")
            return event.error.code, event.error.param

        assert await error(lambda: typed(connection, "append", text="y" * 20)) == ("request_too_large", None)
        assert (await error(lambda: typed(connection, "truncate", length=91)))[0] == "invalid_value"
        await typed(connection, "truncate", length=90)
        assert await error(lambda: typed(connection, "append", text="", response={})) == ("invalid_value", "response")
        await typed(connection, "clear")
        assert (await error(lambda: typed(connection, "commit")))[0] == "invalid_value"
        await typed(connection, "append", text="")
        assert (await error(lambda: typed(connection, "commit")))[0] == "invalid_value"
        await typed(connection, "truncate", length=0)
        await typed(connection, "clear")
        bad = {"previous_response_id": "resp_1"}
        assert (await error(lambda: typed(connection, "append", text="Hi", response=bad)))[0] == (
            "previous_response_not_found"
        )
        await typed(connection, "append", text="Hi", response={})
        await typed(connection, "commit")
        assert text_of(await to_end_skipping(connection)) == "ok"


async def errors_of(
    connection: AsyncResponsesConnection, frames: Sequence[dict[str, Any]]
) -> list[tuple[str, str | None]]:
    """The code and field of each error that frames are answered with that are sent without a pause, and one more."""
    for frame in frames:
        await connection.send_raw(json.dumps(frame))  # As a browser does: half of a character, too.
    await connection.send({"type": "the end"})  # type: ignore[arg-type]
    found: list[tuple[str, str | None]] = []
    while True:
        event = await until_type(connection, "error")
        if "'the end'" in event.error.message:
            return found
        found.append((event.error.code, event.error.param))


def typing(*edits: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": f"input_text_buffer.{verb}"} | fields for verb, fields in edits]


HOLE = ("invalid_value", "type")
UNKNOWN = {"previous_response_id": "resp_none"}
REFUSED: dict[str, tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str | None]]]] = {
    "its beginning is for nothing": (
        [("append", {"text": "a", "response": UNKNOWN})],
        [("previous_response_not_found", "response.previous_response_id")],
    ),
    "its beginning cannot be read": (
        [("append", {"text": "a", "response": {"temperature": "hot"}})],
        [("invalid_value", "response.temperature")],
    ),
    "a text is too long": (
        [("append", {"text": "a"}), ("append", {"text": "b" * 101})],
        [("request_too_large", None)],
    ),
    "a text is none": ([("append", {"text": "a"}), ("append", {"text": 7})], [("invalid_value", "text")]),
    "a verb is unknown": (
        [("append", {"text": "a"}), ("apend", {"text": "b"})],
        [("invalid_value", "type")],
    ),
    "a text is half of a character": (
        [("append", {"text": "a"}), ("append", {"text": "\ud83d"})],
        [("invalid_value", None)],
    ),
    "less was there": (
        [("append", {"text": "a"}), ("truncate", {"length": 2})],
        [("invalid_value", None)],
    ),
    "it was not cleared": (
        [("append", {"text": "a"}), ("clear", {"all": True})],
        [("unsupported_parameter", "all")],
    ),
}


@pytest.mark.parametrize(("edits", "why"), REFUSED.values(), ids=REFUSED)
async def test_nothing_is_answered_that_would_lack_what_was_refused(edits: Any, why: Any) -> None:
    settings = Settings(engine="scripted", max_typed_characters=100)
    async with connected(service_with(says("ok"), settings=settings)) as (_, connection):
        more = typing(*edits, ("append", {"text": "c"}), ("commit", {}))
        assert await errors_of(connection, more) == [*why, HOLE, HOLE]
        assert await errors_of(connection, typing(("clear", {}), ("append", {"text": "d"}), ("commit", {}))) == []


async def test_a_torn_message_goes_on_from_where_its_client_says() -> None:
    async with connected(recalling()) as (_, connection):
        frames = typing(
            ("append", {"text": "One two", "response": {"store": False}}),
            ("append", {"text": None}),
            ("append", {"text": " lost"}),
            ("truncate", {"length": 3}),
            ("append", {"text": " three."}),
        )
        assert await errors_of(connection, frames) == [("invalid_value", "text"), HOLE]
        await typed(connection, "commit")
        assert "One three." in (await to_end_skipping(connection))[-1].response.output_text


async def test_a_commit_that_is_refused_leaves_the_message_and_lets_nothing_be_joined_to_it() -> None:
    permits = Permits()
    async with connected(recalling(permits=permits.semaphore)) as (_, connection):
        for number in range(MAX_WAITING + 1):
            await connection.response.create(model="default", input=f"{number}", store=False)
        frames = typing(("append", {"text": "precious", "response": {"store": False}}), ("commit", {}))
        assert await errors_of(connection, frames) == [("overloaded", None)]
        joined = typing(("append", {"text": "next"}), ("commit", {}))
        assert await errors_of(connection, typing(("commit", {}))) == [("overloaded", None)]
        assert await errors_of(connection, joined) == [HOLE, HOLE]
        await typed(connection, "truncate", length=8)
        permits.give(100_000)
        for _ in range(MAX_WAITING + 1):
            await to_end_skipping(connection)
        await typed(connection, "commit")
        said = (await to_end_skipping(connection))[-1].response.output_text
        assert "precious" in said and "next" not in said


async def test_the_commit_of_nothing_leaves_the_buffer_as_it_was() -> None:
    async with connected(recalling()) as (_, connection):
        opening = {"instructions": "Repeat.", "store": False}
        empty = typing(("append", {"text": "", "response": opening}), ("commit", {}), ("append", {"text": "Hi"}))
        assert await errors_of(connection, empty) == [("invalid_value", "type")]
        await typed(connection, "commit")
        assert "Repeat." in (await to_end_skipping(connection))[-1].response.output_text


async def test_a_message_whose_response_is_refused_can_be_committed_again() -> None:
    permits = Permits()
    settings = Settings(engine="scripted", max_batch_size=1, max_waiting=0)
    async with connected(recalling(permits=permits.semaphore, settings=settings)) as (client, connection):
        other = await client.responses.create(model="default", input="first", stream=True, store=False)
        frames = typing(("append", {"text": "precious", "response": {"store": False}}), ("commit", {}))
        for frame in frames:
            await connection.send(frame)  # type: ignore[arg-type]
        assert (await until_type(connection, "error")).error.code == "overloaded"
        assert await errors_of(connection, typing(("append", {"text": "next"}))) == [HOLE]
        await typed(connection, "truncate", length=8)
        permits.give(100_000)
        assert [event async for event in other]
        await typed(connection, "commit")
        said = (await to_end_skipping(connection))[-1].response.output_text
        assert "precious" in said and "next" not in said


async def test_another_message_takes_the_place_of_one_that_is_torn() -> None:
    async with connected(recalling()) as (_, connection):
        frames = typing(
            ("append", {"text": "old", "response": {"store": False}}),
            ("append", {"text": 7}),
            ("append", {"text": "new", "response": {"instructions": "Repeat.", "store": False}}),
            ("commit", {}),
        )
        for frame in frames:
            await connection.send(frame)  # type: ignore[arg-type]
        assert (await until_type(connection, "error")).error.param == "text"
        said = (await to_end_skipping(connection))[-1].response.output_text
        assert "Repeat." in said and "new" in said and "old" not in said


AFTER: dict[str, tuple[list[tuple[str, dict[str, Any]]], str]] = {
    "the same again": ([], "OLD MESSAGE"),
    "less and more": ([("truncate", {"length": 3}), ("append", {"text": " + more"})], "OLD + more"),
    "another": ([("append", {"text": "NEW", "response": {}})], "NEW"),
    "nothing, then another": ([("clear", {}), ("append", {"text": "NEW", "response": {}})], "NEW"),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("edits", "said"), AFTER.values(), ids=AFTER)
async def test_what_is_typed_at_the_moment_of_a_refusal_meets_the_message_that_was_taken_back(
    edits: list[tuple[str, dict[str, Any]]], said: str, fails: bool
) -> None:
    """With a store that is slow, and with one that fails while the response is refused."""
    service = service_with(lambda prompt: [byte for byte in prompt if byte < 256])
    archive = build_archive(service, Settings(store=":memory:"))
    async with (
        asyncio.timeout(30),
        running_server(service, archive) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        client.responses.connect() as connection,
    ):
        conversation = (await client.conversations.create()).id
        items, down = archive.store.items, False

        async def slow(*args: Any, **fields: Any) -> Page:
            await asyncio.sleep(0.05)
            if down:
                raise StoreError("The store is down.")
            return await items(*args, **fields)

        archive.store.items = slow  # type: ignore[method-assign]
        await typed(connection, "append", text="OLD MESSAGE", response={"conversation": conversation})
        await until(lambda: service._typed.held(""))
        down = fails
        if not fails:
            archive._conversations["", conversation] = "another"
        await typed(connection, "commit")
        error = (await until_type(connection, "error")).error
        assert error.code == ("store_unavailable" if fails else "conversation_locked")
        down = False
        archive._conversations.clear()
        for verb, fields in edits:
            await typed(connection, verb, **fields)
        await typed(connection, "commit")
        answer = (await to_end_skipping(connection))[-1].response.output_text
        assert said in answer and ("OLD" in answer) == ("OLD" in said) and ("NEW" in answer) == ("NEW" in said)
