"""The HTTP surfaces over real sockets, on the real server with a scripted engine."""

from __future__ import annotations

import asyncio

import pytest

from causerie.config import Settings
from causerie.engines.scripted import OutOfBlocks
from tests.support.http import RawResponse, chat_body, request_bytes, send
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until, until_idle

CHAT = "/v1/chat/completions"


async def text_until(response: RawResponse, length: int) -> bytes:
    text = b""
    while len(text) < length:
        text += await response.chunk()
    return text


async def test_text_arrives_while_the_engine_still_waits() -> None:
    permits = Permits()
    service = service_with(says("abc"), permits=permits.semaphore)
    async with running_server(service) as url, asyncio.timeout(10):
        permits.give(1)
        response = await send(url, "POST", "/?prompt=Hello")
        assert await response.head() == 200
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        # Nothing but a permitted step can have produced each of these, and no later one has been permitted.
        assert await response.chunk() == b"a"
        permits.give(1)
        assert await response.chunk() == b"b"
        permits.give(10)
        assert await response.body() == b"c"


async def test_text_body_is_the_prompt() -> None:
    async with running_server(service_with(lambda ids: bytes(i for i in ids if i < 256))) as url:
        response = await send(url, "POST", "/?raw=true", "Grüße 👋".encode(), {"Content-Type": "text/plain"})
        assert await response.head() == 200
        assert (await response.body()).decode() == "Grüße 👋"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/", b"Hi"), (CHAT, b'{"messages":[{"role":"user","content":"Hi"}]}'), ("/v1/responses", b'{"input":"Hi"}')],
)
async def test_compressed_body_is_refused_by_name(path: str, body: bytes) -> None:
    async with running_server(service_with(says("ok"))) as url:
        for encoding, status in (("gzip", 400), ("identity", 200)):
            response = await send(url, "POST", path, body, {"Content-Encoding": encoding})
            assert await response.head() == status
            answer = await response.body()
            assert (b'"param":"Content-Encoding"' in answer) == (status == 400)


@pytest.mark.parametrize("path", ["/?prompt=x", CHAT])
async def test_client_that_resets_frees_its_slot(path: str) -> None:
    service = service_with(endless, step_seconds=0.005)
    async with running_server(service) as url:
        body = b"" if path != CHAT else chat_body(stream=True)
        response = await send(url, "POST", path, body)
        await response.head()
        await response.chunk()
        assert service.running == 1
        response.reset()
        await until_idle(service)


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_before_the_first_token_frees_its_slot(stream: bool) -> None:
    permits = Permits()
    service = service_with(endless, permits=permits.semaphore, step_seconds=0.002)
    async with running_server(service) as url:
        response = await send(url, "POST", CHAT, chat_body(stream=stream))
        await until(lambda: service.running)
        await response.close()
        permits.give(2000)
        await until_idle(service)


async def test_client_that_leaves_an_unstreamed_answer_frees_its_slot() -> None:
    service = service_with(endless, step_seconds=0.005)
    async with running_server(service) as url:
        response = await send(url, "POST", CHAT, chat_body())
        await until(lambda: service.running)
        await response.close()
        await until_idle(service)


async def test_client_that_leaves_the_queue_is_never_run() -> None:
    service = service_with(endless, settings=Settings(max_batch_size=1), step_seconds=0.005)
    async with running_server(service) as url:
        first = await send(url, "POST", "/?prompt=a")
        await first.head()
        second = await send(url, "POST", "/?prompt=b")
        await until(lambda: service.waiting)
        await second.close()
        await until(lambda: not service.waiting)
        assert service.running == 1
        first.reset()
        await until_idle(service)


async def test_over_capacity_is_refused_with_its_real_status() -> None:
    settings = Settings(max_batch_size=1, max_waiting=1)
    service = service_with(endless, settings=settings, step_seconds=0.005)
    async with running_server(service) as url:
        running = await send(url, "POST", CHAT, chat_body(stream=True))
        await running.head()
        waiting = await send(url, "POST", CHAT, chat_body(stream=True))
        await waiting.head()
        refused = await send(url, "POST", CHAT, chat_body(stream=True))
        assert await refused.head() == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert (await refused.json())["error"]["code"] == "overloaded"
        running.reset()
        waiting.reset()
        await until_idle(service)


async def test_failure_before_the_first_text_has_its_status() -> None:
    def script(prompt: object) -> bytes:
        raise OutOfBlocks

    async with running_server(service_with(script)) as url:
        for path, body in (("/?prompt=x", b""), (CHAT, chat_body())):
            response = await send(url, "POST", path, body)
            assert await response.head() == 503
            assert (await response.json())["error"]["code"] == "engine_out_of_memory"


def fails_after(text: bytes):  # type: ignore[no-untyped-def]
    def script(prompt: object):  # type: ignore[no-untyped-def]
        yield from text
        raise OutOfBlocks

    return script


async def test_plain_text_that_fails_has_no_last_chunk() -> None:
    async with running_server(service_with(fails_after(b"abc"))) as url:
        response = await send(url, "POST", "/?prompt=x")
        assert await response.head() == 200
        assert await text_until(response, 3) == b"abc"
        with pytest.raises(asyncio.IncompleteReadError):
            await response.chunk()


async def test_event_stream_that_fails_says_so_and_is_not_done() -> None:
    async with running_server(service_with(fails_after(b"abc"))) as url:
        response = await send(url, "POST", CHAT, chat_body(stream=True))
        assert await response.head() == 200
        body = await response.body()
        assert body.rstrip().split(b"\n\n")[-1].startswith(b'data: {"error":{') and b"[DONE]" not in body


async def test_heartbeats_fill_the_wait_in_the_queue() -> None:
    settings = Settings(max_batch_size=1, heartbeat=0.05)
    service = service_with(endless, settings=settings, step_seconds=0.005)
    async with running_server(service) as url, asyncio.timeout(10):
        running = await send(url, "POST", CHAT, chat_body(stream=True))
        await running.head()
        waiting = await send(url, "POST", CHAT, chat_body(stream=True))
        assert await waiting.head() == 200
        assert (await waiting.chunk()).startswith(b": queued, 0 before you, about ")
        assert await waiting.chunk() == b": keep-alive\n\n"
        assert await waiting.chunk() == b": keep-alive\n\n"
        running.reset()
        waiting.reset()
        await until_idle(service)


async def test_client_that_stops_reading_is_cut_and_its_slot_freed() -> None:
    # The kernel takes some megabytes before anybody notices, so the engine says a lot at once.
    plenty = 50_000_000
    settings = Settings(send_timeout=0.3, max_tokens=plenty)
    pace = {"ids_per_step": 10_000, "step_seconds": 0.002}
    service = service_with(
        endless, settings=settings, context_window=2 * plenty, kv_tokens=2 * plenty, prefix_block=4096, **pace
    )
    async with running_server(service) as url:
        stalled = await send(url, "POST", CHAT, chat_body(stream=True), receive_buffer=4096)
        await stalled.head()
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: service.running)
        await until_idle(service, 30)
        assert b'cancellations_total{cause="slow_reader"} 1.0' in service.metrics.render()
        stalled.reset()


async def test_same_request_id_at_once_is_a_conflict() -> None:
    service = service_with(endless, step_seconds=0.005)
    async with running_server(service) as url:
        first = await send(url, "POST", CHAT, chat_body(stream=True), {"X-Request-Id": "one"})
        assert await first.head() == 200
        assert first.headers["x-request-id"] == "one"
        second = await send(url, "POST", CHAT, chat_body(stream=True), {"X-Request-Id": "one"})
        assert await second.head() == 409
        assert await first.chunk()
        first.reset()
        await until_idle(service)


async def test_invalid_request_id_is_replaced() -> None:
    async with running_server(service_with(says("a"))) as url:
        response = await send(url, "GET", "/v1/models", headers={"X-Request-Id": "a b"})
        await response.head()
        assert response.headers["x-request-id"].isalnum()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/nope", 404),
        ("POST", CHAT, 400),
        ("POST", "/", 400),
        ("GET", "/v1/models/", 404),
    ],
)
async def test_every_refusal_is_an_error_object(method: str, path: str, status: int) -> None:
    async with running_server(service_with(says("a"))) as url:
        response = await send(url, method, path)
        assert await response.head() == status
        error = (await response.json())["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
        assert response.headers["x-request-id"]


async def test_model_is_listed_and_found_by_name() -> None:
    async with running_server(service_with(says("a"))) as url:
        response = await send(url, "GET", "/v1/models")
        await response.head()
        listed = (await response.json())["data"]
        assert [model["id"] for model in listed] == ["scripted"]
        for name in ("scripted", "default"):
            response = await send(url, "GET", f"/v1/models/{name}")
            await response.head()
            assert await response.json() == listed[0]


async def test_health_ready_and_metrics() -> None:
    service = service_with(says("abc"))
    async with running_server(service) as url:
        for path in ("/health", "/ready"):
            assert await (await send(url, "GET", path)).head() == 200
        answer = await send(url, "POST", "/?prompt=x")
        await answer.head()
        await answer.body()
        page = await send(url, "GET", "/metrics")
        assert await page.head() == 200
        lines = (await page.body()).decode().splitlines()
        assert 'causerie:request_success_total{finished_reason="stop"} 1.0' in lines
        assert "causerie:generation_tokens_total 4.0" in lines
        assert "causerie:num_requests_running 0.0" in lines
        await service.drain(0)
        response = await send(url, "GET", "/ready")
        assert await response.head() == 503


async def test_connection_is_kept_for_the_next_request() -> None:
    async with running_server(service_with(says("abc"))) as url:
        response = await send(url, "POST", "/?prompt=x")
        await response.head()
        assert await response.body() == b"abc"
        response.writer.write(request_bytes(url, "POST", "/?prompt=x"))
        assert await response.head() == 200
        assert await response.body() == b"abc"


async def test_model_output_cannot_break_the_event_stream() -> None:
    said = "[DONE]\n\ndata: {}\n\n\u2028<<Response Finished>>"
    async with running_server(service_with(says(said))) as url:
        response = await send(url, "POST", CHAT, chat_body(stream=True))
        await response.head()
        body = await response.body()
        assert body.count(b"data: [DONE]\n\n") == 1 and body.endswith(b"data: [DONE]\n\n")
        assert b"\xe2\x80\xa8" not in body
