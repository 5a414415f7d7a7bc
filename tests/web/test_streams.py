"""Answers as ASGI messages: one send per event, headers at the right time, and an end that cannot be mistaken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from causerie.chat.log import Numbered, ResponseLog
from causerie.config import Settings
from causerie.errors import EngineError, StoreError
from causerie.types import CancelCause, Failed, Finished, FinishReason, Part, Queued, TextDelta, Usage
from causerie.web.openai import EventStream
from causerie.web.requests import ClientGone
from causerie.web.streams import CONNECTION, ResponseCut, StreamedAnswer, read_to_end
from causerie.web.textbot import PlainText
from causerie.wire.openai import Chunks, Heading

FINISHED = Finished((FinishReason.STOP,), Usage(1, 1))
CANCELLED = Finished((FinishReason.CANCELLED,), Usage(1, 1))


class Client:
    """The other side of an ASGI call: it reads when it likes and leaves when it likes."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.left = asyncio.Event()
        self.cancels: list[CancelCause] = []
        self.log = ResponseLog("r", on_cancel=self.cancels.append, on_abandoned=self._abandoned)
        self.aborted = False

    def _abandoned(self, log: ResponseLog) -> None:
        log.cancel(CancelCause.CLIENT)

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        self.messages.append(message)

    def close(self) -> None:
        self.left.set()

    def abort(self) -> None:
        self.aborted = True
        self.left.set()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]

    @property
    def complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    def answer(self, *, sse: bool = False, connected: bool = True, **settings: Any) -> asyncio.Task[None]:
        chunks = EventStream(Chunks(Heading("chat", "r", 0, "m", 1), include_usage=False))
        encoder = chunks if sse else PlainText()
        answer = StreamedAnswer(
            self.log.reader(), encoder, [], Settings(**settings), heartbeat=b": beat\n\n" if sse else None
        )
        scope = {"extensions": {CONNECTION: self}} if connected else {}
        return asyncio.create_task(answer(scope, self.receive, self.send))


def delta(text: str) -> TextDelta:
    return TextDelta((Part(0, text, 1),))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_event_is_sent_as_it_comes() -> None:
    client = Client()
    task = client.answer()
    for count, text in enumerate(["a", "b", "c"], start=1):
        client.log.append(delta(text))
        await settle()
        assert len(client.bodies) == count
    client.log.append(FINISHED)
    await task
    assert b"".join(client.bodies) == b"abc" and client.complete
    assert client.log.reader_count == 0


async def test_plain_text_headers_wait_for_the_first_text() -> None:
    client = Client()
    task = client.answer()
    client.log.append(Queued(0))
    await settle()
    assert client.messages == []
    client.log.append(Failed(EngineError("No.")))
    with pytest.raises(EngineError):
        await task
    assert client.messages == []


async def test_event_stream_headers_do_not_wait() -> None:
    client = Client()
    task = client.answer(sse=True)
    await settle()
    assert [message["type"] for message in client.messages] == ["http.response.start"]
    client.log.append(FINISHED)
    await task


async def test_empty_answer_is_complete() -> None:
    client = Client()
    client.log.append(FINISHED)
    await client.answer()
    assert client.complete and client.bodies == [b""]


@pytest.mark.parametrize("end", [Failed(EngineError("No.")), CANCELLED])
async def test_plain_text_that_fails_is_cut_off(end: Any) -> None:
    client = Client()
    task = client.answer()
    client.log.append(delta("a"))
    await settle()
    client.log.append(end)
    await task
    assert client.left.is_set() and not client.aborted and not client.complete


async def test_server_without_the_extension_is_told_by_an_exception() -> None:
    client = Client()
    client.log.append(delta("a"))
    client.log.append(Failed(EngineError("No.")))
    with pytest.raises(ResponseCut):
        await client.answer(connected=False)
    assert not client.complete


@pytest.mark.parametrize("end", [Failed(EngineError("No.")), CANCELLED])
async def test_event_stream_that_fails_ends_with_an_error_and_no_done(end: Any) -> None:
    client = Client()
    client.log.append(delta("a"))
    client.log.append(end)
    await client.answer(sse=True)
    assert client.complete and b'"error"' in client.bodies[-1]
    assert b"[DONE]" not in b"".join(client.bodies)


async def test_client_that_leaves_ends_the_answer_at_once() -> None:
    client = Client()
    task = client.answer()
    await settle()
    client.left.set()
    await task
    assert client.cancels == [CancelCause.CLIENT] and client.log.reader_count == 0


async def test_client_that_takes_nothing_is_cut_at_the_deadline() -> None:
    client = Client()
    task = client.answer(send_timeout=0.05)
    client.log.append(delta("a"))
    await settle()
    client.takes.clear()
    client.log.append(delta("b"))
    async with asyncio.timeout(2):
        await task
    assert client.cancels == [CancelCause.SLOW_READER] and client.aborted and not client.complete


async def test_slow_but_taking_client_is_not_cut() -> None:
    client = Client()
    task = client.answer(send_timeout=1.0)
    for _ in range(4):
        client.takes.clear()
        client.log.append(delta("a"))
        await asyncio.sleep(0.3)
        client.takes.set()
        await settle()
    client.log.append(FINISHED)
    await task
    assert client.complete and client.cancels == []


async def test_silence_is_filled_with_heartbeats_until_the_end() -> None:
    client = Client()
    task = client.answer(sse=True, heartbeat=0.03)
    async with asyncio.timeout(2):
        while client.bodies.count(b": beat\n\n") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    client.log.append(FINISHED)
    await task
    sent = len(client.messages)
    await asyncio.sleep(0.1)
    assert client.complete and len(client.messages) == sent


async def test_client_that_takes_no_heartbeat_is_cut_too() -> None:
    client = Client()
    task = client.answer(sse=True, heartbeat=0.02, send_timeout=0.05)
    await settle()
    client.takes.clear()
    async with asyncio.timeout(2):
        await task
    assert client.cancels == [CancelCause.SLOW_READER] and client.aborted


async def test_reader_that_lags_gets_what_it_missed_in_one_piece() -> None:
    client = Client()
    client.takes.clear()
    task = client.answer()
    await settle()
    for text in "abcdef":
        client.log.append(delta(text))
        await settle()
    client.takes.set()
    client.log.append(FINISHED)
    await task
    assert client.bodies == [b"a", b"bcdef", b""]


async def test_answer_read_to_its_end() -> None:
    client = Client()
    seen: list[str] = []
    task = asyncio.create_task(
        read_to_end(client.log.reader(), client.receive, lambda event: seen.append(event.parts[0].text))
    )
    client.log.append(delta("a"))
    await settle()
    client.log.append(FINISHED)
    assert await task == FINISHED and seen == ["a"]


async def test_client_that_leaves_an_unstreamed_answer_frees_it() -> None:
    client = Client()
    task = asyncio.create_task(read_to_end(client.log.reader(), client.receive, lambda event: None))
    await settle()
    client.left.set()
    with pytest.raises(ClientGone):
        await task
    assert client.cancels == [CancelCause.CLIENT]


async def test_failure_of_an_unstreamed_answer_is_raised() -> None:
    client = Client()
    client.log.append(Failed(EngineError("No.")))
    with pytest.raises(EngineError):
        await read_to_end(client.log.reader(), client.receive, lambda event: None)


class Failing:
    """A stored response whose store fails after its first event."""

    at_end = False

    def __init__(self) -> None:
        self._events = [Numbered(1, delta("a"))]

    def __aiter__(self) -> Failing:
        return self

    async def __anext__(self) -> Numbered:
        if not self._events:
            raise StoreError("Redis cannot be reached.")
        return self._events.pop()

    async def aclose(self) -> None: ...

    def give_up(self) -> None: ...


async def test_a_store_that_fails_in_the_middle_cuts_the_stream_off() -> None:
    client = Client()
    answer = StreamedAnswer(Failing(), PlainText(), [], Settings(), heartbeat=None)
    await answer({"extensions": {CONNECTION: client}}, client.receive, client.send)
    assert client.bodies == [b"a"] and not client.complete and client.left.is_set()
