"""The chat socket's framed form, and the plain one in a stored conversation, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI
from starlette.types import Message
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from causerie.chat.build import build_archive
from causerie.chat.records import ConversationRecord
from causerie.config import Settings
from causerie.types import Finished, FinishReason
from causerie.web.chatbot import Session
from causerie.web.framed_chat import FRAMED
from causerie.web.openai import limits_of
from causerie.web.streams import CONNECTION
from causerie.web.talks import KeptTalk
from causerie.wire.chat_socket import SENTINEL
from causerie.wire.textbot import parse_socket
from tests.support.response_socket import TERMINALS, serving
from tests.support.server import running_server
from tests.support.service import Permits, endless, says, service_with, until


class Framed:
    """A client of the framed form."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.conversation = ""

    async def event(self, type_: str | None = None) -> dict[str, Any]:
        """The next event, or the next of a type."""
        while True:
            event: dict[str, Any] = json.loads(await self.socket.recv())
            if type_ in (None, event["type"]):
                return event

    async def say(self, text: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": "response.create", "input": text} | fields))

    async def heard(self, characters: int) -> tuple[str, int]:
        """So much of an answer's text, and the number of the event that was its last."""
        said = ""
        while len(said) < characters:
            delta = await self.event("response.output_text.delta")
            said += delta["delta"]
        return said, delta["sequence_number"]

    async def end(self) -> dict[str, Any]:
        while (event := await self.event())["type"] not in TERMINALS:
            assert event["type"] != "error", event
        response: dict[str, Any] = event["response"]
        return response


@asynccontextmanager
async def framed(url: str, query: str = "") -> AsyncIterator[Framed]:
    address = url.replace("http", "ws") + "/" + query
    async with connect(address, subprotocols=[Subprotocol("causerie.chat"), Subprotocol(FRAMED)]) as socket:
        assert socket.subprotocol == FRAMED
        client = Framed(socket)
        created = await client.event("session.created")
        client.conversation = created["session"]["conversation"]["id"]
        yield client


async def said_in(client: AsyncOpenAI, conversation: str) -> list[tuple[str, str]]:
    page = await client.conversations.items.list(conversation, order="asc")
    return [(item.role, item.content[0].text) for item in page.data]  # type: ignore[union-attr, index]


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


async def test_turns_are_kept_in_a_conversation_that_another_socket_joins() -> None:
    async with serving(service_with(says("yes"))) as (url, client):
        async with framed(url) as chat:
            for turn in ("One?", "Two?"):
                await chat.say(turn)
                assert text_of(await chat.end()) == "yes"
        async with framed(url, f"?conversation={chat.conversation}&on_turn=queue") as again:
            assert again.conversation == chat.conversation
            await again.say("Three?")
            await again.end()
        asked = [text for role, text in await said_in(client, chat.conversation) if role == "user"]
        assert asked == ["One?", "Two?", "Three?"]


async def test_a_new_turn_silences_the_answer_within_two_steps_and_keeps_what_was_said() -> None:
    permits = Permits()
    prompts: list[str] = []

    def script(prompt: Sequence[int]) -> Any:
        prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
        return endless(prompt) if len(prompts) == 1 else b"Sorry."

    async with serving(service_with(script, permits=permits.semaphore)) as (url, client), framed(url) as chat:
        await chat.say("Talk.")
        permits.give(5)
        assert (await chat.heard(5))[0] == "aaaaa"
        await chat.say("Stop!")
        # The engine stands still: whatever comes now comes without a step.
        interrupted = await chat.end()
        assert (interrupted["status"], text_of(interrupted)) == ("cancelled", "aaaaa")
        assert (await chat.event())["type"] == "response.created"
        # One step that was under way, and one that is the new answer's first.
        permits.give(2)
        assert (await chat.heard(1))[0] == "S"
        permits.give(100)
        assert text_of(await chat.end()) == "Sorry."
        assert "Talk." in prompts[1] and prompts[1].count("aaaaa") == 1 and "aaaaaa" not in prompts[1]
        assert await said_in(client, chat.conversation) == [
            ("user", "Talk."),
            ("assistant", "aaaaa"),
            ("user", "Stop!"),
            ("assistant", "Sorry."),
        ]


async def test_many_turns_at_once_are_all_kept_and_the_last_is_answered() -> None:
    permits = Permits()
    async with serving(service_with(says("Well."), permits=permits.semaphore)) as (url, client), framed(url) as chat:
        for number in range(5):
            await chat.say(f"{number}?")
        for _ in range(4):
            assert (await chat.end())["status"] == "cancelled"
        permits.give(100)
        assert text_of(await chat.end()) == "Well."
        roles = [role for role, _ in await said_in(client, chat.conversation)]
        assert roles == ["user"] * 5 + ["assistant"]


async def test_turns_wait_where_that_is_asked_for() -> None:
    async with serving(service_with(says("Well."), step_seconds=0.002)) as (url, _), framed(url, "?on_turn=queue") as c:
        for number in range(3):
            await c.say(f"{number}?")
        for _ in range(3):
            assert text_of(await c.end()) == "Well."


@pytest.mark.parametrize("named", [True, False], ids=["by its id and number", "whole"])
async def test_an_answer_goes_on_on_another_socket(named: bool) -> None:
    permits = Permits()
    answer = "abcdefghij"
    async with serving(service_with(says(answer), permits=permits.semaphore)) as (url, _):
        async with framed(url) as chat:
            await chat.say("Spell.")
            id_ = (await chat.event("response.created"))["response"]["id"]
            permits.give(4)
            had, number = await chat.heard(4)
            chat.socket.transport.abort()
        query = f"?conversation={chat.conversation}" + (f"&response={id_}&starting_after={number}" if named else "")
        async with framed(url, query) as again:
            permits.give(100)
            events = [await again.event()]
            while events[-1]["type"] not in TERMINALS:
                events.append(await again.event())
            numbers = [event["sequence_number"] for event in events]
            assert numbers == sorted(set(numbers)) and (numbers[0] > number) == named
            rest = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
            assert (had if named else "") + rest == answer
            assert text_of(events[-1]["response"]) == answer
            await again.say("And?")
            assert text_of(await again.end()) == answer


async def test_an_answer_that_goes_on_can_be_interrupted_on_the_new_socket() -> None:
    service = service_with(
        lambda p: endless(p) if b"Talk." in bytes(i for i in p if i < 256)[-40:] else b"ok", step_seconds=0.002
    )
    async with serving(service) as (url, _):
        async with framed(url) as chat:
            await chat.say("Talk.")
            await chat.heard(3)
            chat.socket.transport.abort()
        async with framed(url, f"?conversation={chat.conversation}") as again:
            await again.heard(3)
            await again.say("Something else entirely, please, and nothing of the other sort.")
            assert (await again.end())["status"] == "cancelled"
            assert text_of(await again.end()) == "ok"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?conversation=conv_none", 404),
        ("?response=resp_1", 400),
        ("?starting_after=1", 400),
        ("?on_turn=never", 400),
        ("?temperature=1", 400),
    ],
)
async def test_a_bad_query_is_refused_before_the_socket_is_there(query: str, status: int) -> None:
    async with serving(service_with(says("ok"))) as (url, _):
        with pytest.raises(InvalidStatus) as caught:
            async with framed(url, query):
                pass
        assert caught.value.response.status_code == status


async def test_another_conversations_response_is_not_told() -> None:
    async with serving(service_with(says("ok"))) as (url, client):
        other = await client.responses.create(model="default", input="Hi")
        async with framed(url) as chat:
            await chat.say("Hi")
            mine = await chat.end()
        for id_, query in ((other.id, ""), (mine["id"], "&starting_after=9999")):
            with pytest.raises(InvalidStatus) as caught:
                async with framed(url, f"?conversation={chat.conversation}&response={id_}{query}"):
                    pass
            assert caught.value.response.status_code == (400 if query else 404)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"stream_id": "a"}, "invalid_stream_id"),
        ({"conversation": "conv_other"}, "invalid_value"),
        ({"previous_response_id": "resp_1"}, "invalid_value"),
        ({"store": False}, "invalid_value"),
    ],
)
async def test_what_does_not_fit_the_conversation_is_an_error_and_the_socket_goes_on(
    fields: dict[str, Any], code: str
) -> None:
    async with serving(service_with(says("ok"))) as (url, _), framed(url) as chat:
        await chat.say("Hi", **fields)
        assert (await chat.event())["error"]["code"] == code
        await chat.say("Hi")
        assert text_of(await chat.end()) == "ok"


async def test_a_typed_turn_is_a_turn_of_the_conversation() -> None:
    async with serving(service_with(says("ok"))) as (url, client), framed(url) as chat:
        for text in ("Hel", "lo"):
            await chat.socket.send(json.dumps({"type": "input_text_buffer.append", "text": text}))
        await chat.socket.send(json.dumps({"type": "input_text_buffer.commit"}))
        await chat.end()
        assert await said_in(client, chat.conversation) == [("user", "Hello"), ("assistant", "ok")]


async def answered(socket: ClientConnection) -> str:
    said = ""
    while (frame := await socket.recv()) != SENTINEL:
        said += str(frame)
    return said


async def test_the_plain_socket_joins_a_stored_conversation() -> None:
    async with serving(service_with(lambda p: [i for i in p if i < 256])) as (url, client):
        conversation = await client.conversations.create(items=[{"role": "user", "content": "I am Ada."}])
        address = url.replace("http", "ws") + f"/?conversation={conversation.id}&max_tokens=500"
        async with connect(address) as socket:
            await socket.send("Who am I?")
            assert "I am Ada." in await answered(socket)
        async with connect(address) as socket:
            await socket.send("Still?")
            assert "Who am I?" in await answered(socket)
        roles = [role for role, _ in await said_in(client, conversation.id)]
        assert roles == ["user", "user", "assistant", "user", "assistant"]
        with pytest.raises(InvalidStatus) as caught:
            await connect(url.replace("http", "ws") + "/?conversation=conv_none")
        assert caught.value.response.status_code == 404


async def test_a_plain_socket_that_is_closed_leaves_the_answer_to_those_who_read_it_too() -> None:
    permits = Permits()
    service = service_with(endless, permits=permits.semaphore)
    async with serving(service) as (url, client):
        conversation = await client.conversations.create()
        query = f"?conversation={conversation.id}"
        async with connect(f"{url.replace('http', 'ws')}/{query}&max_tokens=9") as plain:
            await plain.send("Hi")
            permits.give(2)
            await plain.recv()
            async with framed(url, query) as other:
                await other.heard(2)
                await plain.send(b"No text.")
                with pytest.raises(ConnectionClosed):
                    while True:
                        await plain.recv()
                permits.give(20)
                response = await other.end()
                assert (response["status"], text_of(response)) == ("incomplete", "a" * 9)
                assert response["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_plain_socket_that_takes_nothing_leaves_the_answer_to_those_who_read_it_too() -> None:
    permits, came, cut = Permits(), asyncio.Queue[Message](), asyncio.Event()
    service = service_with(endless, permits=permits.semaphore, settings=Settings(send_timeout=0.05))
    archive = build_archive(service, Settings(store=":memory:"))

    class Connection:
        def abort(self) -> None:
            cut.set()
            came.put_nowait({"type": "websocket.disconnect"})

    async def stuck(message: Message) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(30), running_server(service, archive):
        await archive.store.create_conversation(ConversationRecord("c", "", 0.0), ())
        talk = KeptTalk(service, archive, "", "c", parse_socket(b"max_tokens=9", limits_of(service)))
        session = Session(service, talk, {"extensions": {CONNECTION: Connection()}}, came.get, stuck)
        running = asyncio.create_task(session.run())
        came.put_nowait({"type": "websocket.receive", "text": "Hi"})
        await until(lambda: archive.running("", "c"))
        other = (await archive.find("", archive.running("", "c") or "")).reader(0)
        permits.give(1)
        await cut.wait()
        await running
        permits.give(20)
        events = [event async for _, event in other]
        await other.aclose()
        assert isinstance(events[-1], Finished) and events[-1].reasons == (FinishReason.LENGTH,)


async def test_the_plain_socket_is_closed_where_the_conversation_is_busy() -> None:
    async with serving(service_with(endless, step_seconds=0.002)) as (url, client):
        conversation = await client.conversations.create()
        address = url.replace("http", "ws") + f"/?conversation={conversation.id}"
        async with connect(address) as first, connect(address) as second:
            await first.send("Hi")
            await first.recv()
            await second.send("Hi")
            with pytest.raises(ConnectionClosed) as caught:
                await second.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1008
