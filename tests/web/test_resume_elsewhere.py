"""Streams that are not stored but outlive their readers, read again at another server that shares a Redis."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from causerie.chat import streams
from causerie.chat.archive import Archive
from causerie.chat.service import ChatService
from causerie.chat.store import Retention
from causerie.chat.stores.redis import RedisStore
from causerie.config import Settings
from causerie.engines.scripted import Script
from tests.support.http import RawResponse, chat_body, send
from tests.support.process import serve_process
from tests.support.redis_server import redis_server
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until, until_idle
from tests.web.test_resume import ANSWER, events, read_until, said, text_of

LEASE = 1.0
ALICE, BOB = "ck-of-alice-0123456", "ck-of-bob-0123456789"
CHAT = "/v1/chat/completions"
ALWAYS = {"causerie:schema", "causerie:bytes"}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, protocol=2) as client:
        await client.flushall()
        yield client


@dataclass(frozen=True)
class Two:
    """Two servers with one Redis. What the first generates waits for permits."""

    here: str
    there: str
    service: ChatService
    permits: Permits

    async def begin(self, id_: str, path: str = CHAT, *, key: str = "", **fields: Any) -> RawResponse:
        body: dict[str, Any] = {"stream": True, "on_disconnect": "grace(30)"} | fields
        given = chat_body(**body) if path == CHAT else {"input": "Hi", **body}
        response = await send(self.here, "POST", path, given, {"X-Request-Id": id_, "Authorization": f"Bearer {key}"})
        assert await response.head() == 200, await response.body()
        return response


@asynccontextmanager
async def one_server(url: str, service: ChatService) -> AsyncIterator[str]:
    archive = Archive(service, RedisStore(url, lease=LEASE), Retention(None, None))
    async with running_server(service, archive) as there:
        yield there


@asynccontextmanager
async def two_servers(url: str, script: Script | None = None, **given: object) -> AsyncIterator[Two]:
    script = script or says(ANSWER)
    settings = Settings(engine="scripted", **given)  # type: ignore[arg-type]
    permits = Permits()
    service = service_with(script, settings=settings, permits=permits.semaphore)
    other = service_with(script, settings=settings)
    async with asyncio.timeout(60), one_server(url, service) as here, one_server(url, other) as there:
        yield Two(here, there, service, permits)


async def again(url: str, path: str, **headers: str) -> tuple[int, bytes]:
    response = await send(url, "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return await response.head(), await response.body()


async def keys(redis: Redis) -> set[str]:
    """But those that are always there, and those that say that somebody lives or reads."""
    found = {key.decode() if isinstance(key, bytes) else key for key in await redis.keys()}
    return {key for key in found if not key.startswith(("causerie:lease:", "causerie:followed:"))} - ALWAYS


@pytest.mark.parametrize("spelled", ["continue", "grace(30)"])
async def test_a_cut_stream_is_picked_up_at_another_server_while_it_runs(redis_url: str, spelled: str) -> None:
    async with two_servers(redis_url) as two:
        first = await two.begin(f"cut-{spelled}", on_disconnect=spelled, stream_options={"include_usage": True})
        two.permits.give(9)
        had = await read_until(first, text_of)
        first.reset()
        await until(lambda: not two.service.streams.find("", f"cut-{spelled}").log.reader_count)
        body = chat_body(stream=True, stream_options={"include_usage": True})
        rest = await send(two.there, "POST", CHAT, body, {"Last-Event-ID": str(events(had)[-1][0])})
        assert await rest.head() == 200
        two.permits.give(3)
        more = await read_until(rest, text_of)
        two.permits.give(1000)
        found = more + await rest.body()
        assert text_of(had) + text_of(found) == ANSWER
        assert found.endswith(b"data: [DONE]\n\n") and found.count(b'"finish_reason":"stop"') == 1
        assert events(found)[-2][1]["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1
        assert {data["created"] for _, data in events(had + found)[:-1]} == {events(had)[0][1]["created"]}


@pytest.mark.usefixtures("redis")
async def test_several_read_it_at_both_servers_on_every_route(redis_url: str) -> None:
    async with two_servers(redis_url) as two:
        first = await two.begin("many")
        two.permits.give(9)
        await read_until(first, text_of)
        paths = (f"{CHAT}/many?stream=true", f"{CHAT}/many", "/streams/many")
        reading = [asyncio.create_task(again(url, path)) for url in (two.here, two.there) for path in paths * 2]
        await asyncio.sleep(0)
        two.permits.give(1000)
        for index, (status, body) in enumerate(await asyncio.gather(*reading)):
            assert status == 200
            match index % 3:
                case 0:
                    assert text_of(body) == ANSWER and body.endswith(b"data: [DONE]\n\n")
                case 1:
                    assert b'"finish_reason":"stop"' in body and ANSWER.encode() in body
                case 2:
                    assert body.decode() == ANSWER


@pytest.mark.usefixtures("redis")
async def test_every_place_of_a_finished_stream_gives_the_same_rest_at_both_servers(redis_url: str) -> None:
    async with two_servers(redis_url) as two:
        two.permits.give(1000)
        first = await two.begin("a:b", n=2, logprobs=True)
        whole = events(await first.body())
        for index, (id_, _) in enumerate(whole):
            found = [
                (await again(url, f"{CHAT}/a:b?stream=true", Last_Event_ID=str(id_)))[1]
                for url in (two.here, two.there)
            ]
            rest = events(found[1])
            assert [said(rest, choice) for choice in (0, 1)] == [said(whole[index + 1 :], choice) for choice in (0, 1)]
            assert rest[-2:] == whole[index + 1 :][-2:] == events(found[0])[-2:]
        bodies = [(await again(url, f"{CHAT}/a:b"))[1] for url in (two.here, two.there)]
        assert bodies[0] == bodies[1] and b'"logprobs":{' in bodies[0]
        status, refused = await again(two.there, "/streams/a:b")
        assert status == 400 and b"2 choices" in refused
        status, refused = await again(two.there, f"{CHAT}/a:b?stream=true&starting_after=9999")
        assert status == 400 and b"starting_after" in refused


async def test_it_is_nobody_elses_and_no_stored_response(redis_url: str, redis: Redis) -> None:
    async with two_servers(redis_url, api_keys=f"alice={ALICE},bob={BOB}") as two:
        two.permits.give(1000)
        chat = await two.begin("mine", key=ALICE)
        await chat.body()
        made = await two.begin("r", "/v1/responses", key=ALICE, store=False)
        response = events(await made.body())[0][1]["response"]["id"]
        for id_ in ("mine", response):
            for url in (two.here, two.there):
                for key, status in ((ALICE, 200), (BOB, 404)):
                    assert (await again(url, f"/streams/{id_}", Authorization=f"Bearer {key}"))[0] == status
        names = {key.rpartition(":")[2] for key in await keys(redis)}
        assert len(names) == 2 and all(name.startswith("stream_") for name in names)
        for id_ in {"mine", response} | names:
            for url in (two.here, two.there):
                for path in ("", "?stream=true", "/input_items"):
                    found = await again(url, f"/v1/responses/{id_}{path}", Authorization=f"Bearer {ALICE}")
                    assert found[0] == 404
                for method, path in (("DELETE", ""), ("POST", "/cancel")):
                    answer = await send(
                        url, method, f"/v1/responses/{id_}{path}", b"", {"Authorization": f"Bearer {ALICE}"}
                    )
                    assert await answer.head() == 404
        theirs = await send(
            two.there,
            "POST",
            CHAT,
            chat_body(on_disconnect="continue"),
            {"X-Request-Id": "mine", "Authorization": f"Bearer {BOB}"},
        )
        assert await theirs.head() == 200


async def test_an_id_is_taken_for_all_servers(redis_url: str, redis: Redis) -> None:
    async with two_servers(redis_url) as two:
        first = await two.begin("same")
        wanted = chat_body(on_disconnect="continue")
        taken = await send(two.there, "POST", CHAT, wanted, {"X-Request-Id": "same"})
        assert await taken.head() == 409
        assert (await taken.json())["error"]["code"] == "duplicate_request"
        two.permits.give(1000)
        assert text_of(await first.body()) == ANSWER
        status, body = await again(two.there, f"{CHAT}/same?stream=true")
        assert status == 200 and text_of(body) == ANSWER
        assert len(await keys(redis)) == 2


async def test_what_is_not_to_outlive_its_reader_writes_nothing(redis_url: str, redis: Redis) -> None:
    async with two_servers(redis_url) as two:
        two.permits.give(1000)
        scripts = (await redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
        for fields in ({}, {"stream": True}, {"stream": True, "on_disconnect": "cancel"}):
            answer = await send(two.here, "POST", CHAT, chat_body(**fields))
            assert await answer.head() == 200
            await answer.body()
        for path, body in (("/", b"Hi"), ("/v1/completions", {"prompt": "Hi"})):
            answer = await send(two.here, "POST", path, body)
            assert await answer.head() == 200
            await answer.body()
        answer = await send(two.here, "POST", "/v1/responses", {"input": "Hi", "store": False})
        assert await answer.head() == 200
        await answer.body()
        assert (await redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"] == scripts
        assert await keys(redis) == set()


@pytest.mark.slow
async def test_past_its_window_nothing_is_left_of_it(redis_url: str, redis: Redis) -> None:
    async with two_servers(redis_url, resume_window=1.5) as two:
        first = await two.begin("late")
        two.permits.give(5)
        await read_until(first, text_of)
        for key in (running := await keys(redis)):
            assert 0 < await redis.pttl(key) <= 1000 * (1.5 + LEASE)
        assert len(running) == 2
        await asyncio.sleep(1.5 + 2 * LEASE)  # It lives while its process does.
        two.permits.give(1000)
        await first.body()
        assert await keys(redis) == running
        for key in running:
            assert 0 < await redis.pttl(key) <= 1500
        assert await redis.zcard("causerie:oldest") == 0 and await redis.get("causerie:bytes") in (None, b"0")
        assert (await again(two.there, f"{CHAT}/late"))[0] == 200
        await asyncio.sleep(1.7)
        assert await keys(redis) == set()
        assert (await again(two.there, f"{CHAT}/late"))[0] == 404
        assert (await again(two.here, f"{CHAT}/late"))[0] == 410


async def test_only_as_many_ended_ones_are_there_as_are_kept_in_memory(redis_url: str, redis: Redis) -> None:
    async with two_servers(redis_url, max_batch_size=1, max_waiting=1) as two:
        two.permits.give(1000)
        for index in range(6):
            response = await two.begin(f"s{index}")
            await response.body()
        assert len(await keys(redis)) <= 2 * 3
        assert (await again(two.there, f"{CHAT}/s0"))[0] == 404
        assert (await again(two.there, f"{CHAT}/s5"))[0] == 200


@pytest.mark.usefixtures("redis")
async def test_it_can_be_stopped_through_another_server(redis_url: str) -> None:
    async with two_servers(redis_url, endless) as two:
        response = await two.begin("stop", max_tokens=8000)
        two.permits.give(9)
        await read_until(response, text_of)
        stopped = await send(two.there, "DELETE", "/streams/stop")
        assert await stopped.head() == 200
        assert await stopped.json() == {"id": "stop", "object": "stream", "cancelled": True}
        two.permits.give(10)
        await until_idle(two.service)
        assert b'"cancelled"' in (rest := await response.body()) and b"[DONE]" not in rest
        once_more = await send(two.there, "DELETE", "/streams/stop")
        assert await once_more.head() == 200 and (await once_more.json())["cancelled"] is False
        unknown = await send(two.there, "DELETE", "/streams/none")
        assert await unknown.head() == 404


@pytest.mark.slow
@pytest.mark.usefixtures("redis")
async def test_a_grace_does_not_run_out_while_it_is_read_elsewhere(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FOLLOWED", 2.0)
    async with two_servers(redis_url, endless) as two:
        graced = await two.begin("held", on_disconnect="grace(0.5)", max_tokens=8000)
        stored = await two.begin("r", "/v1/responses", on_disconnect="grace(0.5)", max_output_tokens=8000)
        two.permits.give(9)
        had = await read_until(graced, text_of)
        made = events(await read_until(stored, lambda had: b"output_text.delta" in had))[0][1]["response"]["id"]
        elsewhere = [
            await send(
                two.there, "GET", f"{CHAT}/held?stream=true", headers={"Last-Event-ID": str(events(had)[-1][0])}
            ),
            await send(two.there, "GET", f"/v1/responses/{made}?stream=true"),
        ]
        for reader in elsewhere:
            assert await reader.head() == 200
            two.permits.give(1)
            await reader.chunk()
        graced.reset()
        stored.reset()
        for _ in range(8):
            await asyncio.sleep(0.4)
            two.permits.give(1)
            assert two.service.running == 2
        for reader in elsewhere:
            reader.reset()
        running = list(two.service._responses.values())
        await until(lambda: all(each is not None and each.log.ended for each in running))
        two.permits.give(10)
        await until_idle(two.service)


@pytest.mark.slow
async def test_of_a_killed_server_another_has_what_was_said_and_then_one_end(redis_url: str, redis: Redis) -> None:
    with serve_process("--store", redis_url, "--resume-window", "3") as killed:
        other = service_with(says(ANSWER))
        async with asyncio.timeout(60), one_server(redis_url, other) as there:
            body = chat_body("la " * 2000, stream=True, on_disconnect="continue", max_tokens=8000)
            cut = []
            for id_ in ("gone", "unread"):
                cut.append(await send(killed.url, "POST", CHAT, body, {"X-Request-Id": id_}))
                assert await cut[-1].head() == 200
            had = await read_until(cut[0], lambda had: len(text_of(had)) > 20)
            follower = await send(there, "GET", f"{CHAT}/gone?stream=true")
            assert await follower.head() == 200
            await follower.chunk()
            killed.signal(signal.SIGKILL)
            with pytest.raises(asyncio.IncompleteReadError):
                while True:
                    had += await cut[0].chunk()
            assert b'"interrupted"' in await follower.body()
            assert b'"interrupted"' in (await again(there, f"{CHAT}/unread?stream=true"))[1]
            status, whole = await again(there, f"{CHAT}/gone?stream=true")
            *said_, (_, end) = events(whole)
            assert status == 200 and said(said_, 0).startswith(text_of(had[: had.rindex(b"\n\n") + 2]))
            assert end["error"]["code"] == "interrupted" and whole.count(b'"error"') == 1 and b"[DONE]" not in whole
            status, rest = await again(there, f"{CHAT}/gone?stream=true", Last_Event_ID=str(said_[-2][0]))
            assert status == 200 and len(events(rest)) == 2
            assert 0 < await redis.pttl(next(iter(await keys(redis)))) <= 5000
            async with asyncio.timeout(10):
                while await keys(redis):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert (await again(there, f"{CHAT}/gone"))[0] == 404


@pytest.mark.slow
async def test_a_redis_that_goes_away_ends_it_once_and_leaves_the_others_alone() -> None:
    with redis_server() as url:
        service = service_with(endless, step_seconds=0.005)
        archive = Archive(service, RedisStore(url, lease=LEASE), Retention(None, None))
        async with asyncio.timeout(60), running_server(service, archive) as here:
            for wish in ("continue", "cancel"):
                body = chat_body(stream=True, on_disconnect=wish, max_tokens=400)
                response = await send(here, "POST", CHAT, body, {"X-Request-Id": wish})
                assert await response.head() == 200
                if wish == "continue":
                    graced = response
                    await read_until(graced, lambda had: b"content" in had)
                    async with Redis.from_url(url) as client:
                        await client.shutdown(nosave=True)
            assert b"[DONE]" in await response.body()
            failed = await graced.body()
            assert failed.count(b'"error"') == 1 and b"[DONE]" not in failed
            refused = await send(here, "POST", CHAT, chat_body(on_disconnect="continue"))
            assert await refused.head() == 503


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("wish", [{}, {"on_disconnect": "grace(30)"}])
async def test_a_stored_response_is_read_on_every_route_at_both_servers(redis_url: str, wish: dict[str, str]) -> None:
    async with two_servers(redis_url) as two:
        first = await two.begin("ignored", "/v1/responses", **wish)
        two.permits.give(9)
        had = await read_until(first, lambda data: re.search(rb"resp_[0-9a-f]+", data) and b"output_text.delta" in data)
        match = re.search(rb"resp_[0-9a-f]+", had)
        assert match is not None
        id_ = match[0].decode()
        paths = (f"{CHAT}/{id_}?stream=true", f"{CHAT}/{id_}", f"/v1/completions/{id_}", f"/streams/{id_}")
        reading = [asyncio.create_task(again(url, path)) for url in (two.here, two.there) for path in paths]
        await asyncio.sleep(0)
        two.permits.give(1000)
        await first.body()
        after = [await again(url, path) for url in (two.here, two.there) for path in paths]
        for index, (status, body) in enumerate([*await asyncio.gather(*reading), *after]):
            assert status == 200
            match index % 4:
                case 0:
                    assert text_of(body) == ANSWER and body.endswith(b"data: [DONE]\n\n")
                case 1:
                    assert orjson.loads(body)["choices"][0]["message"]["content"] == ANSWER
                case 2:
                    assert orjson.loads(body)["choices"][0]["text"] == ANSWER
                case 3:
                    assert body.decode() == ANSWER


@pytest.mark.usefixtures("redis")
async def test_a_stored_response_is_stopped_as_a_stream_at_another_server(redis_url: str) -> None:
    async with two_servers(redis_url, endless) as two:
        first = await two.begin("ignored", "/v1/responses")
        two.permits.give(9)
        had = await read_until(first, lambda data: re.search(rb"resp_[0-9a-f]+", data) and b"output_text.delta" in data)
        match = re.search(rb"resp_[0-9a-f]+", had)
        assert match is not None
        path = f"/streams/{match[0].decode()}"
        stop = await send(two.there, "DELETE", path)
        assert await stop.head() == 200
        assert orjson.loads(await stop.body())["cancelled"] is True
        assert b"event: response.incomplete" in await first.body()
        two.permits.give(100)
        stop = await send(two.there, "DELETE", path)
        assert await stop.head() == 200
        assert orjson.loads(await stop.body())["cancelled"] is False
        unknown = await send(two.there, "DELETE", "/streams/resp_0")
        assert await unknown.head() == 404
        await unknown.body()
        await until_idle(two.service)
