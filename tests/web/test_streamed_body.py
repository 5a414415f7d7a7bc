"""A text body that streams in: read ahead as it arrives, answered when it ends, within its limits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.engines.scripted import echo
from tests.support.http import RawResponse, connect
from tests.support.server import running_server
from tests.support.service import Permits, says, service_with, until, until_idle

TEXT = "The harbour was quiet that morning, and two boats lay against the wall. " * 8


class Upload:
    """A request whose body is sent piece by piece, in chunks."""

    def __init__(self, response: RawResponse) -> None:
        self.response = response
        self.head = response.head

    def send(self, piece: bytes) -> None:
        self.response.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end(self) -> None:
        self.response.writer.write(b"0\r\n\r\n")

    async def text(self) -> str:
        assert await self.head() == 200
        return (await self.response.body()).decode()

    async def error(self, status: int) -> dict[str, Any]:
        assert await self.head() == status
        error: dict[str, Any] = (await self.response.json())["error"]
        return error


async def upload(url: str, path: str = "/", method: str = "POST", *headers: str) -> Upload:
    response = await connect(url)
    encoded = () if any(line.startswith("Transfer-Encoding") for line in headers) else ("Transfer-Encoding: chunked",)
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *encoded, *headers, "", ""]
    response.writer.write("\r\n".join(lines).encode())
    return Upload(response)


def bare(prompt: Sequence[int]) -> bytes:
    """The script that says the whole prompt back."""
    return bytes(id_ for id_ in prompt if id_ < 256)


@asynccontextmanager
async def serving(script: Any = echo, **settings: Any) -> AsyncIterator[tuple[ChatService, str]]:
    service = service_with(script, settings=Settings(engine="scripted", **settings))
    async with running_server(service) as url:
        yield service, url


def cached(service: ChatService, text: str) -> int:
    return service.engine.cached(list(text.encode()))


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_body_is_read_ahead_as_it_arrives_and_answered_when_it_ends(method: str) -> None:
    async with serving(bare) as (service, url):
        sending = await upload(url, "/?raw=true", method)
        half = len(TEXT) // 2
        sending.send(TEXT[:half].encode())
        await until(lambda: cached(service, TEXT) > half - 64)
        assert service.running == service.waiting == 0
        sending.send(TEXT[half:].encode())
        await until(lambda: cached(service, TEXT) > len(TEXT) - 64)
        sending.end()
        assert await sending.text() == TEXT


async def test_a_streamed_turn_goes_through_the_template() -> None:
    async with serving() as (_, url):
        sending = await upload(url)
        sending.send(b"Hi ")
        await asyncio.sleep(0.01)
        sending.send(b"there")
        sending.end()
        assert (
            await sending.text() == "You said: Hi there. This is the scripted engine; it answers every turn this way."
        )


async def test_characters_may_be_split_between_chunks() -> None:
    async with serving(bare) as (_, url):
        sending = await upload(url, "/?raw=true")
        for byte in "a🎈é".encode():
            sending.send(bytes([byte]))
            await asyncio.sleep(0.002)
        sending.end()
        assert await sending.text() == "a🎈é"


@pytest.mark.parametrize(
    ("pieces", "place"), [([b"abc", b"d\xff"], 4), ([b"abc", b"\xc3", b"x"], 3), ([b"a", b"\xe4\xbd"], 1)]
)
async def test_what_is_not_utf8_is_refused_by_its_place(pieces: list[bytes], place: int) -> None:
    async with serving() as (service, url):
        sending = await upload(url)
        for piece in pieces:
            sending.send(piece)
            await asyncio.sleep(0.01)
        if pieces[-1] != b"x" and b"\xff" not in pieces[-1]:
            sending.end()
        assert f"byte {place}" in (await sending.error(400))["message"]
        await until_idle(service)


async def test_an_empty_body_has_no_prompt() -> None:
    async with serving() as (_, url):
        sending = await upload(url)
        await asyncio.sleep(0.01)
        sending.end()
        assert (await sending.error(400))["param"] == "prompt"


@pytest.mark.parametrize(
    ("path", "header", "param"),
    [
        ("/?prompt=Hi", "X-A: b", "prompt"),
        ("/?bogus=1", "X-A: b", "bogus"),
        ("/?temperature=hot", "X-A: b", "temperature"),
        ("/", "Content-Type: application/json", "Content-Type"),
        ("/", "Content-Encoding: gzip", "Content-Encoding"),
        ("/", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding"),
    ],
)
async def test_what_is_wrong_with_the_rest_is_said_before_the_body_ends(path: str, header: str, param: str) -> None:
    async with serving() as (service, url):
        sending = await upload(url, path, "PUT", header)
        sending.send(b"Hello")
        assert (await sending.error(400))["param"] == param
        assert sending.response.headers["connection"] == "close"
        await until_idle(service)


async def test_a_body_over_its_cap_is_refused_as_it_grows() -> None:
    async with serving(max_body_bytes=1024) as (_, url):
        sending = await upload(url)
        for _ in range(5):
            sending.send(b"x" * 500)
            await asyncio.sleep(0.005)
        assert (await sending.error(413))["code"] == "request_too_large"


async def test_a_body_that_stalls_is_refused_and_one_that_goes_on_is_not() -> None:
    async with serving(says("yes"), body_timeout=0.3) as (service, url):
        stalling, going = await upload(url), await upload(url)
        stalling.send(TEXT.encode())
        for _ in range(8):
            going.send(b"on and ")
            await asyncio.sleep(0.1)
        assert (await stalling.error(408))["message"] == "Nothing more of the body arrived for 0.3 seconds."
        going.end()
        assert await going.text() == "yes"
        await until(lambda: not service.engine.stats().running)


async def test_a_body_that_never_ends_is_refused() -> None:
    async with serving(streamed_body_timeout=0.3) as (service, url):
        sending = await upload(url)

        async def go_on() -> None:
            while True:
                sending.send(b"and on ")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(go_on())
        assert (await sending.error(408))["message"] == "The body did not end within 0.3 seconds."
        task.cancel()
        await until(lambda: not service.engine.stats().running)


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_in_mid_body_is_read_no_further(leave: str) -> None:
    permits = Permits()
    service = service_with(bare, permits=permits.semaphore)
    async with running_server(service) as url:
        sending = await upload(url, "/?raw=true")
        sending.send(TEXT.encode())
        await until(lambda: service.engine.stats().running)
        if leave == "close":
            await sending.response.close()
        else:
            sending.response.reset()
        await until(lambda: not service._ahead._buffers)
        permits.give(20)
        await until(lambda: not service.engine.stats().running)
        await asyncio.sleep(0.02)
        assert cached(service, TEXT) <= 256
        assert not service.running


async def test_a_prompt_too_long_for_the_window_is_refused_when_it_ends() -> None:
    service = service_with(echo, context_window=256)
    async with running_server(service) as url:
        sending = await upload(url)
        sending.send(TEXT.encode())
        await asyncio.sleep(0.02)
        sending.end()
        assert (await sending.error(400))["code"] == "context_length_exceeded"


async def test_two_bodies_and_a_request_at_once_are_all_answered() -> None:
    async with serving(bare) as (service, url):
        one, two = await upload(url, "/?raw=true"), await upload(url, "/?raw=true", "PUT")
        for place in range(0, len(TEXT), 16):
            one.send(b"1" + TEXT[place : place + 16].encode())
            two.send(b"2" + TEXT[place : place + 16].encode())
            await asyncio.sleep(0.001)
        short = await upload(url, "/?raw=true")
        short.send(b"short")
        short.end()
        assert await short.text() == "short"
        one.end()
        two.end()
        assert (await one.text()).replace("1", "") == TEXT
        assert (await two.text()).replace("2", "") == TEXT
        await until_idle(service)


async def test_curl_streams_a_body_up_and_its_answer_down() -> None:
    """``./slow-producer | curl -sN -T - URL``: a PUT that expects 100-continue."""
    async with serving() as (service, url):
        curl = await asyncio.create_subprocess_exec(
            *("curl", "-sN", "-T", "-", "--expect100-timeout", "20", "--noproxy", "*", "-w", "%{http_code}", f"{url}/"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": "/nonexistent"},
        )
        assert curl.stdin is not None
        async with asyncio.timeout(15):
            for piece in pieces(TEXT):
                curl.stdin.write(piece)
                await curl.stdin.drain()
                await asyncio.sleep(0.005)
            await until(lambda: service._ahead._buffers and service._ahead._buffers[0].read > len(TEXT) - 100)
            curl.stdin.close()
            output, _ = await curl.communicate()
        assert output.decode().startswith(f"You said: {TEXT.strip()}.")
        assert output.endswith(b"200")


def pieces(text: str, size: int = 40) -> Iterator[bytes]:
    encoded = text.encode()
    return (encoded[place : place + size] for place in range(0, len(encoded), size))
