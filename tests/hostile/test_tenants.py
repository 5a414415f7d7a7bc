"""What belongs to one API key is not there for another, whichever way it asks: case 36, promise 12."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson

from causerie.config import Settings
from tests.support.http import chat_body, send
from tests.support.server import running_server
from tests.support.service import Permits, endless, service_with, until

ALICE, BOB = "ck-of-alice-0123456", "ck-of-bob-0123456789"
UNKNOWN = "0" * 32


@dataclass(frozen=True)
class Ids:
    """What alice has, or what nobody has."""

    stream: str
    response: str
    conversation: str
    item: str

    def requests(self) -> list[tuple[str, str, Any, dict[str, str]]]:
        """Every request that names one of them: method, path, body, headers."""
        again = {"Last-Event-ID": f"{self.stream}:1"}
        response, talk = f"/v1/responses/{self.response}", f"/v1/conversations/{self.conversation}"
        item = f"{talk}/items/{self.item}"
        message = {"type": "message", "role": "user", "content": "Hi"}
        return [
            ("GET", f"/v1/chat/completions/{self.stream}", b"", {}),
            ("GET", f"/v1/chat/completions/{self.stream}?stream=true", b"", {}),
            ("GET", f"/v1/chat/completions/{self.stream}?stream=true", b"", again),
            ("GET", f"/v1/chat/completions/{self.response}?stream=true", b"", {}),
            ("GET", f"/v1/completions/{self.stream}?stream=true&starting_after=1", b"", {}),
            ("GET", f"/streams/{self.stream}", b"", {}),
            ("GET", f"/streams/{self.stream}", b"", again),
            ("GET", f"/streams/{self.response}", b"", {}),
            ("POST", "/v1/chat/completions", chat_body(stream=True), again),
            ("POST", "/v1/completions", {"prompt": "Hi", "stream": True}, again),
            ("POST", "/", b"Hi", again),
            ("GET", response, b"", {}),
            ("GET", f"{response}?stream=true", b"", {}),
            ("GET", f"{response}?stream=true&starting_after=0", b"", {}),
            ("GET", f"{response}/input_items", b"", {}),
            ("POST", f"{response}/cancel", b"", {}),
            ("POST", f"{response}/ack", {"text_end": 0}, {}),
            ("DELETE", response, b"", {}),
            ("POST", "/v1/responses", {"input": "Hi", "previous_response_id": self.response}, {}),
            ("POST", "/v1/responses", {"input": "Hi", "previous_response_id": self.response, "store": False}, {}),
            ("POST", "/v1/responses", {"input": "Hi", "conversation": self.conversation}, {}),
            ("GET", talk, b"", {}),
            ("POST", talk, {"metadata": {"a": "b"}}, {}),
            ("GET", f"{talk}/items", b"", {}),
            ("POST", f"{talk}/items", {"items": [message]}, {}),
            ("GET", item, b"", {}),
            ("DELETE", item, b"", {}),
            ("DELETE", talk, b"", {}),
        ]


class Client:
    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = {"Authorization": f"Bearer {key}"}

    async def ask(self, method: str, path: str, body: Any = b"", headers: Any = None) -> tuple[int, bytes]:
        answer = await send(self._url, method, path, body, {**self._key, **(headers or {})})
        return await answer.head(), await answer.body()

    async def made(self, path: str, body: Any) -> Any:
        status, answer = await self.ask("POST", path, body)
        assert status == 200, answer
        return orjson.loads(answer)


async def test_what_is_anothers_is_not_there_on_any_route_running_or_ended() -> None:
    permits = Permits()
    settings = Settings(engine="scripted", api_keys=f"alice={ALICE},bob={BOB}")  # type: ignore[arg-type]
    service = service_with(endless, settings=settings, permits=permits.semaphore)
    async with asyncio.timeout(60), running_server(service) as url:
        alice, bob = Client(url, ALICE), Client(url, BOB)
        body = chat_body(stream=True, on_disconnect="continue", max_tokens=20)
        first = await send(
            url, "POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {ALICE}", "X-Request-Id": "mine"}
        )
        assert await first.head() == 200
        item = {"type": "message", "role": "user", "content": "My secret."}
        talk = await alice.made("/v1/conversations", {"items": [item]})
        _, items = await alice.ask("GET", f"/v1/conversations/{talk['id']}/items")
        asked = {"input": "My secret.", "background": True, "conversation": talk["id"], "max_output_tokens": 20}
        response = await alice.made("/v1/responses", asked)
        ids = Ids("mine", response["id"], talk["id"], orjson.loads(items)["data"][0]["id"])
        permits.give(5)
        await until(lambda: len(service.streams.find("alice", "mine").log.history()) > 2)

        await check_nothing_is_there(bob, ids)
        same = chat_body(max_tokens=1)
        theirs = asyncio.create_task(bob.ask("POST", "/v1/chat/completions", same, {"X-Request-Id": "mine"}))
        permits.give(1000)
        assert (await theirs)[0] == 200
        assert b"[DONE]" in await first.body()
        while orjson.loads((await alice.ask("GET", f"/v1/responses/{ids.response}"))[1])["status"] == "in_progress":
            await alice.ask("GET", f"/v1/responses/{ids.response}?stream=true")
        await check_nothing_is_there(bob, ids)

        _, mine = await alice.ask("GET", f"/v1/responses/{ids.response}")
        assert orjson.loads(mine)["status"] == "incomplete" and orjson.loads(mine)["output"]
        _, kept = await alice.ask("GET", f"/v1/conversations/{ids.conversation}/items")
        assert len(orjson.loads(kept)["data"]) == 3
        assert (await alice.ask("GET", "/v1/chat/completions/mine"))[0] == 200


async def check_nothing_is_there(client: Client, ids: Ids) -> None:
    """Each answer is the one that an id gets which nobody ever had."""
    nobodys = Ids(UNKNOWN, f"resp_{UNKNOWN}", f"conv_{UNKNOWN}", f"msg_{UNKNOWN}")
    for request, unknown in zip(ids.requests(), nobodys.requests(), strict=True):
        status, answer = await client.ask(*request)
        _, expected = await client.ask(*unknown)
        # The API says 400 of a previous response that is not there.
        assert status == (400 if b"previous_response_not_found" in answer else 404), (request, status, answer)
        assert b"secret" not in answer
        for had, nobodys_id in zip(
            (ids.stream, ids.response, ids.conversation, ids.item),
            (nobodys.stream, nobodys.response, nobodys.conversation, nobodys.item),
            strict=True,
        ):
            answer = answer.replace(had.encode(), nobodys_id.encode())
        assert answer == expected, request
