"""The plain chat socket over real sockets, read with the ``websockets`` client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast

import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from causerie.config import Settings
from causerie.engines.scripted import OutOfBlocks
from causerie.web.server import ChatServer, bind
from causerie.wire.chat_socket import MAX_PENDING_TURNS, SENTINEL
from tests.support.http import close_all, request_bytes
from tests.support.http import connect as connect_raw
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until, until_idle


def socket_to(url: str, **options: object) -> connect:
    return connect(url.replace("http", "ws") + "/", **options)  # type: ignore[arg-type]


async def answer(socket: ClientConnection) -> list[str]:
    frames = []
    async with asyncio.timeout(10):
        while (frame := await socket.recv()) != SENTINEL:
            assert isinstance(frame, str)
            frames.append(frame)
    return frames


async def close_of(socket: ClientConnection) -> tuple[int, str]:
    """The code and the reason with which the server closes, and that no sentinel came before."""
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionClosed) as caught:
            while await socket.recv() != SENTINEL:
                pass
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def test_each_turn_is_answered_and_ended_by_the_sentinel() -> None:
    async with running_server(service_with(says("abc"), step_seconds=0.005)) as url, socket_to(url) as socket:
        for _ in range(2):
            await socket.send("Hello")
            assert "".join(await answer(socket)) == "abc"


async def test_frames_arrive_while_the_engine_still_waits() -> None:
    permits = Permits()
    service = service_with(says("ab"), permits=permits.semaphore)
    async with running_server(service) as url, socket_to(url) as socket, asyncio.timeout(10):
        await socket.send("Hello")
        permits.give(1)
        assert await socket.recv() == "a"
        permits.give(10)
        assert await answer(socket) == ["b"]


async def test_conversation_is_kept_until_the_client_leaves() -> None:
    prompts: list[bytes] = []

    def script(prompt: Sequence[int]) -> Iterable[int]:
        prompts.append(bytes(id_ for id_ in prompt if id_ < 256))
        return b"answer %d" % len(prompts)

    async with running_server(service_with(script)) as url:
        async with socket_to(url) as socket:
            for turn in ("first", "second"):
                await socket.send(turn)
                await answer(socket)
        async with socket_to(url) as socket:
            await socket.send("third")
            await answer(socket)
    assert b"first" in prompts[1] and b"answer 1" in prompts[1] and b"second" in prompts[1]
    assert b"first" not in prompts[2]


async def test_turns_sent_ahead_wait_for_theirs() -> None:
    async with running_server(service_with(says("ok"), step_seconds=0.01)) as url, socket_to(url) as socket:
        for turn in ("one", "", "three"):
            await socket.send(turn)
        for _ in range(3):
            assert "".join(await answer(socket)) == "ok"


async def test_too_many_turns_ahead_close_the_socket() -> None:
    service = service_with(endless, step_seconds=0.005)
    async with running_server(service) as url, socket_to(url) as socket:
        for _ in range(MAX_PENDING_TURNS + 2):
            await socket.send("x")
        code, reason = await close_of(socket)
        assert code == 1013 and str(MAX_PENDING_TURNS) in reason
        await until_idle(service)


async def test_client_that_leaves_ends_the_generation() -> None:
    service = service_with(endless, step_seconds=0.005)
    async with running_server(service) as url:
        async with socket_to(url) as socket:
            await socket.send("Hello")
            await socket.recv()
            assert service.running == 1
        await until_idle(service)


async def test_client_that_vanishes_ends_the_generation() -> None:
    service = service_with(endless, step_seconds=0.005)
    async with running_server(service) as url:
        socket = await socket_to(url)
        await socket.send("Hello")
        await socket.recv()
        socket.transport.abort()
        await until_idle(service)


async def test_sentinel_said_by_the_model_is_split() -> None:
    # All ids in one step, so that the text arrives as the one frame that must not be sent.
    service = service_with(says(SENTINEL), ids_per_step=len(SENTINEL))
    async with running_server(service) as url, socket_to(url) as socket:
        await socket.send("Hello")
        frames = await answer(socket)
        assert len(frames) == 2 and "".join(frames) == SENTINEL


async def test_failure_closes_with_1011_and_no_sentinel() -> None:
    def script(prompt: Sequence[int]) -> Iterable[int]:
        yield from b"abc"
        raise OutOfBlocks

    async with running_server(service_with(script)) as url, socket_to(url) as socket:
        await socket.send("Hello")
        code, reason = await close_of(socket)
        assert code == 1011 and "KV-cache" in reason


async def test_over_capacity_closes_with_1013() -> None:
    service = service_with(endless, settings=Settings(max_batch_size=1, max_waiting=0), step_seconds=0.005)
    async with running_server(service) as url, socket_to(url) as first, socket_to(url) as second:
        await first.send("Hello")
        await first.recv()
        await second.send("Hello")
        code, reason = await close_of(second)
        assert code == 1013 and "full" in reason
        assert await first.recv()


@pytest.mark.parametrize("overflow", ["error", "drop_oldest"])
async def test_turn_that_cannot_fit_closes_with_1009(overflow: str) -> None:
    settings = Settings(context_overflow=overflow)  # type: ignore[arg-type]
    service = service_with(says("ok"), settings=settings, context_window=128)
    async with running_server(service) as url, socket_to(url) as socket:
        await socket.send("x" * 500)
        code, reason = await close_of(socket)
        assert code == 1009 and "128 tokens" in reason


async def test_full_window_drops_the_oldest_turns() -> None:
    service = service_with(says("ok"), context_window=256)
    async with running_server(service) as url, socket_to(url) as socket:
        for _ in range(12):
            await socket.send("y" * 40)
            assert "".join(await answer(socket)) == "ok"


async def test_full_window_is_an_error_where_the_setting_says_so() -> None:
    service = service_with(says("ok"), settings=Settings(context_overflow="error"), context_window=256)
    async with running_server(service) as url, socket_to(url) as socket:
        with pytest.raises(ConnectionClosed) as caught:
            for _ in range(12):
                await socket.send("y" * 40)
                await answer(socket)
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009


async def test_binary_frame_closes_with_1003() -> None:
    async with running_server(service_with(says("ok"))) as url, socket_to(url) as socket:
        await socket.send(b"\x00")
        assert (await close_of(socket))[0] == 1003


async def test_oversize_message_closes_with_1009() -> None:
    service = service_with(says("ok"), settings=Settings(max_frame_bytes=2048))
    async with running_server(service) as url, socket_to(url) as socket:
        await socket.send("x" * 4096)
        assert (await close_of(socket))[0] == 1009


async def test_endless_fragments_close_with_1009() -> None:
    async with running_server(service_with(says("ok"))) as url:
        opened = await connect_raw(url)
        opened.writer.write(request_bytes(url, "GET", "/", headers=UPGRADE))
        assert await opened.head() == 101
        empty = b"\x80" + b"\x00" * 4
        opened.writer.write(b"\x01" + empty + (b"\x00" + empty) * 5000)
        assert (await opened.reader.readexactly(4))[2:] == (1009).to_bytes(2, "big")


async def test_invalid_utf8_closes_with_1007() -> None:
    async with running_server(service_with(says("ok"))) as url:
        opened = await connect_raw(url)
        opened.writer.write(request_bytes(url, "GET", "/", headers=UPGRADE))
        assert await opened.head() == 101
        opened.writer.write(b"\x81\x82" + b"\x00" * 4 + b"\xff\xfe")
        assert (await opened.reader.readexactly(4))[2:] == (1007).to_bytes(2, "big")


async def test_what_is_sent_after_a_bad_frame_has_no_receiver_and_is_no_fault_of_the_sender() -> None:
    told: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        told.append((await receive())["type"])
        try:
            await send({"type": "websocket.send", "text": "late"})
        except Exception as error:
            told.append(error)

    server = ChatServer(cast(Any, app), Settings(), bind(Settings(port=0)))
    await server.start()
    opened = await connect_raw(server.url)
    opened.writer.write(request_bytes(server.url, "GET", "/", headers=UPGRADE))
    assert await opened.head() == 101
    opened.writer.write(b"\x81\x82" + b"\x00" * 4 + b"\xff\xfe")
    await until(lambda: len(told) == 2)
    assert told[0] == "websocket.disconnect" and isinstance(told[1], OSError)
    close_all()
    await server.stop()


async def test_compression_is_not_agreed_to() -> None:
    async with running_server(service_with(says("ok"))) as url, socket_to(url, compression="deflate") as socket:
        assert socket.response is not None and "Sec-WebSocket-Extensions" not in socket.response.headers
        await socket.send("Hello")
        assert "".join(await answer(socket)) == "ok"


async def test_client_that_reads_nothing_is_cut() -> None:
    settings = Settings(send_timeout=0.3, max_tokens=50_000_000)
    pace = {"ids_per_step": 10_000, "step_seconds": 0.002}
    size = {"context_window": 100_000_000, "kv_tokens": 100_000_000, "prefix_block": 4096}
    service = service_with(endless, settings=settings, **pace, **size)
    async with running_server(service) as url:
        opened = await connect_raw(url, receive_buffer=4096)
        opened.writer.write(request_bytes(url, "GET", "/", headers=UPGRADE))
        assert await opened.head() == 101
        opened.reader._transport.pause_reading()  # type: ignore[attr-defined]
        opened.writer.write(b"\x81\x82" + b"\x00" * 4 + b"hi")
        await until(lambda: service.running)
        await until_idle(service, 30)
        assert b'cancellations_total{cause="slow_reader"} 1.0' in service.metrics.render()


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://127.0.0.1:1"])
async def test_foreign_origin_is_refused_before_accept(origin: str) -> None:
    async with running_server(service_with(says("ok"))) as url:
        with pytest.raises(InvalidStatus) as caught:
            await socket_to(url, origin=origin)
        assert caught.value.response.status_code == 403
        assert b"foreign_origin" in (caught.value.response.body or b"")


async def test_own_origin_is_accepted() -> None:
    async with running_server(service_with(says("ok"))) as url, socket_to(url, origin=url) as socket:
        await socket.send("Hello")
        assert "".join(await answer(socket)) == "ok"


async def test_sampling_is_read_from_the_url() -> None:
    async with (
        running_server(service_with(says("abcdef"))) as url,
        connect(url.replace("http", "ws") + "/?max_tokens=4&stop=d") as socket,
    ):
        await socket.send("Hello")
        assert "".join(await answer(socket)) == "abc"


async def test_bad_parameter_in_the_url_is_refused_before_accept() -> None:
    async with running_server(service_with(says("ok"))) as url:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url.replace("http", "ws") + "/?temprature=1")
        assert caught.value.response.status_code == 400
        assert b"'temperature'" in (caught.value.response.body or b"")


async def test_socket_is_refused_with_503_while_draining() -> None:
    service = service_with(says("ok"))
    async with running_server(service) as url:
        await service.drain(0)
        with pytest.raises(InvalidStatus) as caught:
            await socket_to(url)
        assert caught.value.response.status_code == 503


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
