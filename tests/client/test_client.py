"""The asynchronous client against a real server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from causerie.chat.build import build_archive
from causerie.chat.records import ResponseRecord
from causerie.chat.service import ChatService
from causerie.client import AsyncAnswer, AsyncClient, Patience
from causerie.client.streams import ResponseStream
from causerie.config import Settings
from causerie.errors import (
    Cancelled,
    ConfigError,
    ConnectionLost,
    ContextLengthExceeded,
    ConversationNotFound,
    EngineError,
    InvalidKey,
    InvalidRequest,
    Overloaded,
    PreviousResponseNotFound,
    UnsupportedParameter,
)
from causerie.keys import hash_of, new_key
from causerie.types import FinishReason, Usage
from causerie.web.server import bind
from causerie.wire.disconnect import MAX_GRACE
from tests.support.fault_proxy import Fault, FaultProxy, Way
from tests.support.http import send
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until, until_idle

ANSWER = "Ein Löwe 🦁 läuft durch den Wald."
WAYS = ("text", "chat")
QUICK = Patience(connect=5, silence=20, reconnect=1)


@asynccontextmanager
async def client_of(service: ChatService, **options: Any) -> AsyncIterator[AsyncClient]:
    async with (
        asyncio.timeout(30),
        running_server(service) as url,
        AsyncClient(url, patience=QUICK, **options) as client,
    ):
        yield client


def recalling() -> ChatService:
    """Answers with all that it was told."""
    return service_with(lambda prompt: [byte for byte in prompt if byte < 256])


async def test_text_comes_in_pieces() -> None:
    async with client_of(service_with(says(ANSWER), step_seconds=0.002)) as client:
        answer = client.text("Hi", max_tokens=400, temperature=0, stop=["@", "$"], ignore_eos=False)
        assert (answer.finish_reason, answer.usage) == (None, None)
        pieces = [piece async for piece in answer]
        assert len(pieces) > 1 and all(pieces) and "".join(pieces) == ANSWER
        assert answer.finish_reason is FinishReason.STOP
        assert answer.usage is not None and answer.usage.completion_tokens == len(ANSWER.encode()) + 1
        assert await answer.read() == ""


async def test_an_answer_that_met_its_limit_says_so() -> None:
    async with client_of(service_with(endless)) as client:
        text = client.text("Hi", max_tokens=5)
        assert (await text.read(), text.finish_reason) == ("aaaaa", FinishReason.LENGTH)
        chat = await client.chat(max_tokens=5).send("Hi")
        assert (await chat.read(), chat.finish_reason) == ("aaaaa", FinishReason.LENGTH)
        assert text.usage == chat.usage != Usage()


async def test_a_chat_knows_what_was_said_before() -> None:
    async with client_of(recalling()) as client:
        chat = client.chat(instructions="Be kind.")
        assert "My name is Ada." in await (await chat.send("My name is Ada.")).read()
        second = await chat.send("Who am I?")
        said = await second.read()
        assert "My name is Ada." in said and "Who am I?" in said and "Be kind." in said
        assert chat.last == second.id is not None
        other = client.chat(after=chat.last)
        assert "Who am I?" in await (await other.send("Still?")).read()
        assert "Ada" not in await (await client.chat().send("Who?")).read()


async def test_a_conversation_is_found_again_by_its_id() -> None:
    async with client_of(recalling()) as client:
        id_ = await client.create_conversation({"topic": "names"})
        chat = client.chat(conversation=id_)
        for _ in range(3):  # Each begins as soon as the last has ended.
            await (await chat.send("My name is Ada.")).read()
        assert "My name is Ada." in await (await client.chat(conversation=id_).send("Who am I?")).read()


async def ask(client: AsyncClient, way: str, **sampling: Any) -> AsyncAnswer:
    return client.text("Hi", **sampling) if way == "text" else await client.chat(**sampling).send("Hi")


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_answer_ends_with_what_it_had_said(way: str) -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        answer = await ask(client, way, max_tokens=8000)
        first = await anext(answer)
        await answer.cancel()
        await until_idle(service)
        assert set(first + await answer.read()) == {"a"}
        assert answer.finish_reason is FinishReason.CANCELLED
        await answer.cancel()


async def test_a_text_that_is_stopped_before_it_is_read_is_never_generated() -> None:
    service = service_with(endless)
    async with client_of(service) as client:
        answer = client.text("Hi", max_tokens=8000)
        await answer.cancel()
        assert (await answer.read(), answer.finish_reason) == ("", FinishReason.CANCELLED)
        assert service.engine.stats().steps == 0


async def test_a_text_is_stopped_at_whatever_moment_of_its_beginning() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        for turns in range(40):
            answer = client.text("Hi", max_tokens=8000)
            reading = asyncio.create_task(answer.read())
            for _ in range(turns):
                await asyncio.sleep(0)
            await answer.cancel()
            assert len(await asyncio.wait_for(reading, 5)) < 1000
            assert answer.finish_reason is FinishReason.CANCELLED
        await until_idle(service)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 250)], ids=["whole", "cut", "cut twice"])
async def test_a_turn_that_is_given_up_before_it_was_accepted_is_stopped(cuts: tuple[int, ...]) -> None:
    """Its client knows no id, and the next turn of the conversation is free at once, also where the answer was cut."""
    service = service_with(endless, step_seconds=0.002)
    archive = build_archive(service, Settings(store=":memory:"))
    begin, begins, go = archive.store.begin, asyncio.Event(), asyncio.Event()

    async def held(record: ResponseRecord, behind: str | None = None) -> None:
        begins.set()
        await go.wait()
        await begin(record, behind)

    archive.store.begin = held  # type: ignore[method-assign]
    async with asyncio.timeout(30), running_server(service, archive) as url:
        address = urlsplit(url)
        assert address.hostname and address.port
        # The connection of the first request stays whole, and is closed by the client.
        left = iter([Fault(None), *(Fault(Way.RESET, cut) for cut in cuts)])
        async with (
            AsyncClient(url) as beside,
            FaultProxy((address.hostname, address.port), lambda: next(left, Fault(None))) as proxy,
        ):
            conversation = await beside.create_conversation()
            async with AsyncClient("{}:{}".format(*proxy.address), patience=QUICK) as client:
                chat = client.chat(conversation=conversation, max_tokens=8000)
                sending = asyncio.create_task(chat.send("One"))
                await begins.wait()
                sending.cancel()
                await asyncio.sleep(0)
                go.set()
                with pytest.raises(asyncio.CancelledError):
                    await sending
                assert proxy.cuts.total() == len(cuts)
                await until_idle(service)
                async with await chat.send("Two") as answer:
                    assert await anext(answer)


async def test_a_turn_that_is_stopped_before_it_is_asked_for_is_never_generated() -> None:
    service = service_with(endless)
    async with client_of(service) as client:
        answer = AsyncAnswer(ResponseStream(client._server, {"input": "Hi"}), QUICK)
        await answer.cancel()
        with pytest.raises(Cancelled):
            await answer.begin()
        assert (answer.id, answer.finish_reason) == (None, FinishReason.CANCELLED)
        assert service.engine.stats().steps == 0


async def test_a_turn_is_stopped_at_whatever_moment_of_its_beginning() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        for turns in range(0, 60, 2):
            sending = asyncio.create_task(client.chat(max_tokens=8000).send("Hi"))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await (await sending).cancel()
            await until_idle(service)


async def test_leaving_the_block_frees_the_slot() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        async with client.text("Hi", max_tokens=8000) as answer:
            await anext(answer)
        await until_idle(service)
        async with await client.chat(max_tokens=8000).send("Hi"):
            await until(lambda: service.running)
        await until_idle(service)
        async with client.text("Hi"):
            pass
        assert not service.running


async def test_closing_the_client_stops_what_still_comes() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with asyncio.timeout(30), running_server(service) as url:
        async with AsyncClient(url) as client:
            answers = [await ask(client, way, max_tokens=8000) for way in WAYS]
            for answer in answers:
                await anext(answer)
        await until_idle(service)


async def test_a_new_turn_interrupts_the_answer_and_what_it_said_is_remembered() -> None:
    def script(prompt: Any) -> Any:
        said = bytes(byte for byte in prompt if byte < 256)
        return said if b"Stop" in said else endless(prompt)

    service = service_with(script, step_seconds=0.002)
    async with client_of(service) as client:
        chat = client.chat()
        first = await chat.send("Count")
        heard = await anext(first)
        second = await chat.send("Stop")
        heard += await first.read()
        assert heard and set(heard) == {"a"} and first.finish_reason is FinishReason.CANCELLED
        assert f"assistant\n{heard}" in await second.read()


async def test_somebody_elses_cancelling_is_an_error() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with client_of(service) as client:
        answer = await client.chat(max_tokens=8000).send("Hi")
        await anext(answer)
        response = await send(client.url, "POST", f"/v1/responses/{answer.id}/cancel")
        assert await response.head() == 200
        with pytest.raises(Cancelled):
            await answer.read()


@pytest.mark.parametrize("way", WAYS)
async def test_a_read_that_runs_out_of_time_loses_nothing(way: str) -> None:
    permits = Permits()
    permits.give(8)
    async with client_of(service_with(says(ANSWER), permits=permits.semaphore)) as client:
        answer = await ask(client, way)
        heard = await anext(answer)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                while True:
                    heard += await anext(answer)
        permits.give(100)
        assert heard + await answer.read() == ANSWER


async def test_refusals_are_the_servers_errors() -> None:
    settings = Settings(engine="scripted", max_waiting=0)
    service = service_with(endless, settings=settings, max_sequences=1, step_seconds=0.002)
    async with client_of(service) as client:
        with pytest.raises(InvalidRequest) as refused:
            await client.text("Hi", temperature=-1).read()
        assert refused.value.param == "temperature" and refused.value.request_id
        with pytest.raises(InvalidRequest):
            await client.chat(temperature=-1).send("Hi")
        with pytest.raises(PreviousResponseNotFound):
            await client.chat(after="resp_none").send("Hi")
        with pytest.raises(ConversationNotFound):
            await client.chat(conversation="conv_none").send("Hi")
        with pytest.raises(ContextLengthExceeded):
            await client.text("Hi" * 8000).read()
        async with client.text("Hi", max_tokens=8000) as answer:
            await anext(answer)
            with pytest.raises(Overloaded) as full:
                await client.text("Hi").read()
            assert full.value.retry_after >= 1


@pytest.mark.parametrize("way", WAYS)
async def test_half_a_character_is_refused(way: str) -> None:
    async with client_of(service_with(says(ANSWER))) as client:
        with pytest.raises(InvalidRequest, match="not valid Unicode"):
            await (client.text("\ud83d").read() if way == "text" else client.chat().send("\ud83d"))


async def test_what_the_engine_cannot_do_is_refused_by_name() -> None:
    async with client_of(service_with(says("x"), parameters=frozenset({"max_tokens"}))) as client:
        with pytest.raises(UnsupportedParameter) as refused:
            await client.text("Hi", top_k=3).read()
        assert refused.value.param == "top_k"


@pytest.mark.parametrize("way", WAYS)
async def test_a_failure_in_mid_answer_is_raised_each_time(way: str) -> None:
    def breaks(prompt: Any) -> Any:
        yield from b"abc"
        raise RuntimeError("broken")

    async with client_of(service_with(breaks, step_seconds=0.002)) as client:
        answer = await ask(client, way)
        for _ in range(2):
            with pytest.raises(EngineError):
                await answer.read()
        assert answer.finish_reason is None


async def test_a_key_comes_from_the_argument_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    settings = Settings(engine="scripted", api_keys={"ada": hash_of(key.encode())})
    service = service_with(says(ANSWER), settings=settings)
    async with asyncio.timeout(30), running_server(service) as url:
        async with AsyncClient(url, api_key=key) as client:
            assert await client.text("Hi").read() == ANSWER
        monkeypatch.setenv("CAUSERIE_API_KEY", key)
        async with AsyncClient(url.removeprefix("http://") + "/v1/") as client:
            assert await client.text("Hi").read() == ANSWER
        async with AsyncClient(url, api_key=new_key()) as client:
            with pytest.raises(InvalidKey):
                await client.text("Hi").read()
    with pytest.raises(ConfigError):
        AsyncClient(url, api_key="no key")


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_of_great_patience_is_answered(way: str) -> None:
    """It asks for no more grace than a server gives."""
    patience = Patience(reconnect=MAX_GRACE)
    assert patience.grace == f"grace({MAX_GRACE:.3f})"
    service = service_with(says(ANSWER))
    async with asyncio.timeout(30), running_server(service) as url, AsyncClient(url, patience=patience) as client:
        assert await (await ask(client, way)).read() == ANSWER


async def test_nobody_there_is_said_at_once() -> None:
    sock = bind(Settings(port=0))
    port = sock.getsockname()[1]
    sock.close()
    async with asyncio.timeout(10), AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(ConnectionLost, match=f"No server answers at http://127.0.0.1:{port}"):
            await client.text("Hi").read()
        with pytest.raises(ConnectionLost):
            await client.chat().send("Hi")


@pytest.mark.parametrize("url", ["ftp://localhost:1", "localhost:port"])
async def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is no (server's address|causerie server)"):
        async with asyncio.timeout(10), AsyncClient(url) as client:
            await client.text("Hi").read()


def test_importing_it_is_light() -> None:
    code = "import causerie.client, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = {
        "numpy",
        "tokenizers",
        "uvicorn",
        "starlette",
        "pydantic",
        "orjson",
        "openvino",
        "torch",
        "causerie.config",
    }
    assert set(done.stdout.split()) & heavy == set()


async def kept_of(client: AsyncClient, answer: AsyncAnswer) -> str:
    response = await send(client.url, "GET", f"/v1/responses/{answer.id}")
    assert await response.head() == 200
    return "".join(item["content"][0]["text"] for item in (await response.json())["output"])


async def test_an_interrupted_answer_keeps_what_its_client_says_to_have_shown() -> None:
    permits = Permits()
    async with client_of(service_with(says(ANSWER), permits=permits.semaphore)) as client:
        chat = client.chat()
        answer = await chat.send("Hi")
        permits.give(20)
        read = await anext(answer)
        while len(read) < 14:
            read += await anext(answer)
        await answer.ack(4)
        await answer.ack(10)
        for bad in (len(read) + 1, 9, -1):
            with pytest.raises(InvalidRequest):
                await answer.ack(bad)
        await chat.interrupt()
        permits.give(1000)
        assert await kept_of(client, answer) == ANSWER[:10]
        assert ANSWER.startswith(read + await answer.read())
        assert answer.finish_reason is FinishReason.CANCELLED
        await answer.ack()
        with pytest.raises(InvalidRequest):
            await client.text("Hi").ack()


async def test_all_that_was_read_is_acknowledged_where_nothing_else_is_said() -> None:
    permits = Permits()
    async with client_of(service_with(endless, permits=permits.semaphore)) as client:
        chat = client.chat()
        answer = await chat.send("Hi")
        permits.give(3)
        read = await anext(answer)
        await answer.ack()
        permits.give(5)
        assert await anext(answer)
        await chat.interrupt()
        permits.give(100)
        assert await kept_of(client, answer) == read
