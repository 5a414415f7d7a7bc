"""Streams that outlive their readers, over real sockets: picked up again with nothing lost and nothing doubled."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from causerie.chat.service import ChatService
from causerie.config import Settings
from tests.support.http import RawResponse, chat_body, send
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until, until_idle

ANSWER = "Ein Löwe 🦁 läuft durch den Wald."


def gated(answer: str = ANSWER, **settings: Any) -> tuple[ChatService, Permits]:
    permits = Permits()
    given = Settings(engine="scripted", **settings)
    return service_with(says(answer), settings=given, permits=permits.semaphore), permits


def events(body: bytes) -> list[tuple[str | None, Any]]:
    """Each event's id and data, comments left out."""
    found = []
    for block in body.decode().split("\n\n"):
        id_ = re.search(r"^id: (.*)$", block, re.MULTILINE)
        data = re.search(r"^data: (.*)$", block, re.MULTILINE)
        if data:
            found.append((id_[1] if id_ else None, data[1] if data[1] == "[DONE]" else orjson.loads(data[1])))
    return found


def text_of(body: bytes) -> str:
    return said(events(body), 0)


def said(found: list[tuple[str | None, Any]], index: int) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for _, data in found
        if data != "[DONE]"
        for choice in data["choices"]
        if choice["index"] == index
    )


async def read_until(response: RawResponse, seen: Callable[[bytes], object]) -> bytes:
    """Chunks until what came is enough; how many they are depends on how far the reader lags."""
    had = b""
    while not seen(had):
        had += await response.chunk()
    return had


@pytest.mark.parametrize("spelled", ["continue", "grace(30)"])
async def test_a_cut_stream_is_picked_up_behind_its_last_event(spelled: str) -> None:
    service, permits = gated()
    async with running_server(service) as url:
        body = chat_body(stream=True, on_disconnect=spelled, stream_options={"include_usage": True})
        first = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "one"})
        assert await first.head() == 200
        permits.give(9)
        had = await read_until(first, text_of)
        first.reset()
        await until(lambda: not service.streams.find("", "one").log.reader_count)
        permits.give(1000)
        last_id = events(had)[-1][0]
        assert last_id is not None and last_id.startswith("one:")
        again = await send(url, "POST", "/v1/chat/completions", body, {"Last-Event-ID": last_id})
        assert await again.head() == 200
        rest = await again.body()
        assert text_of(had) + text_of(rest) == ANSWER
        assert rest.endswith(b"data: [DONE]\n\n") and rest.count(b'"finish_reason":"stop"') == 1
        assert events(rest)[-2][1]["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1


async def test_every_place_of_a_finished_stream_gives_exactly_the_rest() -> None:
    service = service_with(says(ANSWER))
    async with running_server(service) as url:
        body = chat_body(stream=True, on_disconnect="continue", n=2)
        first = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "a:b"})
        await first.head()
        whole = events(await first.body())
        for index, (id_, _) in enumerate(whole):
            again = await send(url, "GET", "/v1/chat/completions/a:b?stream=true", headers={"Last-Event-ID": str(id_)})
            assert await again.head() == 200
            rest = events(await again.body())
            # Text that comes late comes as one.
            assert [said(rest, choice) for choice in (0, 1)] == [said(whole[index + 1 :], choice) for choice in (0, 1)]
            assert rest[-2:] == whole[index + 1 :][-2:]
        assert [choice["index"] for choice in whole[1][1]["choices"]] == [0, 1]


async def test_several_read_the_same_stream_at_once_on_several_routes() -> None:
    service, permits = gated()
    async with running_server(service) as url:
        body = chat_body(stream=True, on_disconnect="continue")
        first = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "many"})
        await first.head()
        chat = await send(url, "GET", "/v1/chat/completions/many?stream=true")
        text = await send(url, "GET", "/streams/many")
        whole = await send(url, "GET", "/v1/chat/completions/many")
        permits.give(1000)
        assert text_of(await first.body()) == ANSWER
        await chat.head()
        assert text_of(await chat.body()) == ANSWER
        await text.head()
        assert (await text.body()).decode() == ANSWER
        await whole.head()
        assert (await whole.json())["choices"][0]["message"]["content"] == ANSWER


async def test_plain_text_has_events_with_ids_for_those_who_accept_them() -> None:
    service, permits = gated()
    async with running_server(service) as url:
        headers = {"Accept": "text/event-stream", "X-On-Disconnect": "grace(30)", "X-Request-Id": "t"}
        first = await send(url, "POST", "/", b"Hello", headers)
        await first.head()
        permits.give(6)
        had = events(await read_until(first, events))
        first.reset()
        permits.give(1000)
        again = await send(url, "GET", "/streams/t", headers={"Last-Event-ID": str(had[-1][0])})
        await again.head()
        rest = events(await again.body())
        assert "".join(data for _, data in had + rest[:-1]) == ANSWER
        assert rest[-1][1]["finish_reason"] == "stop"


async def test_nobody_comes_back_within_the_grace_and_the_slot_is_free() -> None:
    service = service_with(endless, step_seconds=0.001)
    async with running_server(service) as url:
        body = chat_body(stream=True, on_disconnect="grace(0.3)", max_tokens=8000)
        first = await send(url, "POST", "/v1/chat/completions", body)
        await first.head()
        await first.chunk()
        first.reset()
        await asyncio.sleep(0.1)
        assert service.running == 1
        await until_idle(service, 2.0)


async def test_one_that_comes_back_in_time_keeps_it_running() -> None:
    service = service_with(endless, step_seconds=0.001)
    async with running_server(service) as url:
        body = chat_body(stream=True, on_disconnect="grace(0.4)", max_tokens=8000)
        first = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "back"})
        await first.head()
        await first.chunk()
        first.reset()
        again = await send(url, "GET", "/v1/chat/completions/back?stream=true")
        await again.head()
        await asyncio.sleep(0.6)
        assert service.running == 1
        again.reset()
        await until_idle(service, 2.0)


async def test_without_a_wish_a_stream_ends_with_its_reader_and_has_no_ids() -> None:
    service = service_with(endless, step_seconds=0.001)
    async with running_server(service) as url:
        body = chat_body(stream=True, max_tokens=8000)
        first = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "plain"})
        await first.head()
        assert b"id: " not in (await first.chunk()) + (await first.chunk())
        first.reset()
        await until_idle(service, 1.0)
        again = await send(url, "GET", "/v1/chat/completions/plain?stream=true")
        assert await again.head() == 404
        assert (await again.json())["error"]["code"] == "response_not_found"


async def test_past_the_window_it_is_gone_and_said_so() -> None:
    service = service_with(says(ANSWER), settings=Settings(engine="scripted", resume_window=0.05))
    async with running_server(service) as url:
        body = chat_body(on_disconnect="continue")
        first = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "late"})
        assert await first.head() == 200
        await first.body()
        await asyncio.sleep(0.2)
        again = await send(url, "GET", "/v1/chat/completions/late")
        assert await again.head() == 410
        assert (await again.json())["error"]["code"] == "stream_expired"


@pytest.mark.parametrize(
    ("path", "headers", "param"),
    [
        ("/v1/chat/completions/x?stream=true&starting_after=-1", {}, "starting_after"),
        ("/v1/chat/completions/x?starting_after=1", {}, "starting_after"),
        ("/v1/chat/completions/x?stream=true&starting_after=99999", {}, "starting_after"),
        ("/v1/chat/completions/x?stream=true", {"Last-Event-ID": "nonsense"}, "Last-Event-ID"),
        ("/v1/chat/completions/x?stream=true", {"Last-Event-ID": "y:1"}, "Last-Event-ID"),
        ("/streams/x", {"Last-Event-ID": "y:1"}, "Last-Event-ID"),
        ("/streams/x", {"Last-Event-ID": "x:99999"}, "Last-Event-ID"),
        ("/streams/x?starting_after=99999", {}, "starting_after"),
        ("/streams/x?from=1", {}, "from"),
    ],
)
async def test_a_wrong_place_is_refused_by_name(path: str, headers: dict[str, str], param: str) -> None:
    service = service_with(says(ANSWER))
    async with running_server(service) as url:
        body = chat_body(on_disconnect="continue")
        first = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "x"})
        await first.head()
        await first.body()
        again = await send(url, "GET", path, headers=headers)
        assert await again.head() == 400
        assert (await again.json())["error"]["param"] == param


async def test_an_id_cannot_be_used_again_while_its_stream_can_be_read() -> None:
    service = service_with(says(ANSWER), settings=Settings(engine="scripted", resume_window=0.2))
    async with running_server(service) as url:
        for wish, status in (("continue", 200), ("continue", 409), ("cancel", 200)):
            body = chat_body(stream=True, on_disconnect=wish)
            answer = await send(url, "POST", "/v1/chat/completions", body, {"X-Request-Id": "x"})
            assert await answer.head() == status
            await answer.body()
        again = await send(url, "GET", "/v1/chat/completions/x?stream=true&starting_after=3")
        assert await again.head() == 200 and ANSWER.endswith(text_of(await again.body()))
        await until(lambda: not service.streams.has("", "x"))
        answer = await send(
            url, "POST", "/v1/chat/completions", chat_body(on_disconnect="continue"), {"X-Request-Id": "x"}
        )
        assert await answer.head() == 200
        await answer.body()


@pytest.mark.parametrize("wish", ["never", "grace(-1)", "grace(1e9)", "grace()", 5])
async def test_an_unknown_wish_is_refused_by_name(wish: object) -> None:
    async with running_server(service_with(says(ANSWER))) as url:
        answer = await send(url, "POST", "/v1/chat/completions", chat_body(on_disconnect=wish))
        assert await answer.head() == 400
        assert (await answer.json())["error"]["param"] == "on_disconnect"


async def test_a_stream_that_outlives_its_reader_can_be_stopped_by_its_id() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with running_server(service) as url:
        headers = {"X-Request-Id": "mine", "X-On-Disconnect": "continue", "Accept": "text/event-stream"}
        response = await send(url, "POST", "/?max_tokens=8000", b"Hi", headers)
        await response.head()
        await response.chunk()
        stopped = await send(url, "DELETE", "/streams/mine")
        assert await stopped.head() == 200
        assert await stopped.json() == {"id": "mine", "object": "stream", "cancelled": True}
        await until_idle(service)
        assert b"event: error" in (rest := await response.body()) and b'"cancelled"' in rest
        again = await send(url, "DELETE", "/streams/mine")
        assert await again.head() == 200 and (await again.json())["cancelled"] is False
        unknown = await send(url, "DELETE", "/streams/none")
        assert await unknown.head() == 404
