"""Bodies, headers and hosts that are too large, too slow or no such thing, over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from causerie.config import Settings
from tests.support.http import connect, request_bytes, send
from tests.support.server import running_server
from tests.support.service import says, service_with

CHAT = "/v1/chat/completions"


async def test_body_over_the_cap_is_refused_before_it_is_read() -> None:
    async with running_server(service_with(says("a"), settings=Settings(max_body_bytes=2048))) as url:
        response = await connect(url)
        response.writer.write(request_bytes(url, "POST", CHAT, headers={"Content-Length": "100000000"}))
        assert await response.head() == 413
        assert response.headers["connection"] == "close"
        assert (await response.json())["error"]["code"] == "request_too_large"


async def test_client_that_expects_100_is_refused_before_it_sends() -> None:
    async with running_server(service_with(says("a"), settings=Settings(max_body_bytes=2048))) as url:
        response = await connect(url)
        headers = {"Content-Length": "1000000", "Expect": "100-continue"}
        response.writer.write(request_bytes(url, "POST", CHAT, headers=headers))
        assert await response.head() == 413


async def test_endless_chunks_are_refused_and_the_connection_closed() -> None:
    async with running_server(service_with(says("a"), settings=Settings(max_body_bytes=2048))) as url:
        response = await connect(url)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        response.writer.write(head.encode())
        for _ in range(200):
            response.writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert await response.head() == 413
        await response.body()
        async with asyncio.timeout(5):
            assert await response.reader.read() == b""


async def test_slow_body_is_refused_in_time() -> None:
    async with running_server(service_with(says("a"), settings=Settings(body_timeout=0.1))) as url:
        response = await connect(url)
        response.writer.write(request_bytes(url, "POST", CHAT, headers={"Content-Length": "10"}) + b"{")
        assert await response.head() == 408


async def test_headers_over_their_cap_are_refused() -> None:
    async with running_server(service_with(says("a"))) as url:
        for end in (b"\r\n\r\n", b""):
            response = await connect(url)
            response.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * 80_000 + end)
            assert await response.head() == 431
            assert (await response.json())["error"]["code"] == "request_too_large"


async def test_what_is_not_http_is_refused_with_an_error_object() -> None:
    async with running_server(service_with(says("a"))) as url:
        response = await connect(url)
        response.writer.write(b"HELLO\r\n\r\n")
        assert await response.head() == 400
        assert (await response.json())["error"]["message"]


@pytest.mark.parametrize("host", ["x/v1?", "", "a b", "a@b", "[::1", "x:port", "x:1:2"])
async def test_malformed_host_is_refused(host: str) -> None:
    async with running_server(service_with(says("a"))) as url:
        response = await send(url, "GET", "/v1/models", headers={"Host": host})
        assert await response.head() == 400
        assert (await response.json())["error"]["param"] == "Host"


async def status_for(url: str, host: str) -> int:
    return await (await send(url, "GET", "/v1/models", headers={"Host": host})).head()


HERE = ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:80", "192.168.1.5"]


@pytest.mark.parametrize("host", HERE)
async def test_host_that_no_page_can_make_up_is_answered(host: str) -> None:
    async with running_server(service_with(says("a"))) as url:
        assert await status_for(url, host) == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "127.1"])
async def test_name_that_is_not_ours_is_refused(host: str) -> None:
    service = service_with(says("a"))
    async with running_server(service) as url:
        response = await send(url, "GET", "/v1/models", headers={"Host": host})
        assert await response.head() == 400
        assert (await response.json())["error"]["code"] == "unknown_host"
    assert b'admission_rejections_total{reason="unknown_host"} 1.0' in service.metrics.render()


@pytest.mark.parametrize(("allowed", "status"), [("chat.example.org", 200), ("*", 200), ("other.example", 400)])
async def test_names_that_are_allowed_are_answered(allowed: str, status: int) -> None:
    async with running_server(service_with(says("a"), settings=Settings(allowed_hosts=allowed))) as url:  # type: ignore[arg-type]
        assert await status_for(url, "Chat.example.org:8000") == status
        assert await status_for(url, "localhost") == 200
