"""All that is typed and not committed under one key has a limit, over all its connections; others have theirs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from causerie.chat.service import ChatService
from causerie.chat.typed import TypedText
from causerie.config import Settings
from causerie.errors import TypedTextLimit
from causerie.keys import hash_of
from causerie.web.framed_chat import FRAMED
from tests.support.server import running_server
from tests.support.service import says, service_with, until
from tests.web.test_streamed_body import upload

KEYS = {"ada": "a" * 32, "ben": "b" * 32}


class Socket:
    """One key's socket, on which text is typed."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.typed = 0

    async def edit(self, verb: str, **fields: Any) -> None:
        if verb != "append":
            self.typed = fields.get("length", 0)
        await self.socket.send(json.dumps({"type": f"input_text_buffer.{verb}"} | fields))

    async def refusal(self) -> dict[str, Any] | None:
        """What was refused until now, if anything was."""
        await self.socket.send('{"type": "mark"}')
        found = None
        while True:
            frame = json.loads(await self.socket.recv())
            if frame["type"] != "error":
                continue
            if "'mark'" in frame["error"]["message"]:
                return found
            found = frame

    async def append(self, length: int, **fields: Any) -> str | None:
        """The code of what it was refused with; then more can be added."""
        await self.edit("append", text="x" * length, **fields)
        refusal = await self.refusal()
        if refusal is None:
            self.typed += length
            return None
        if self.typed:
            await self.edit("truncate", length=self.typed)
        else:
            await self.edit("clear")
        assert refusal["status"] == 429 and "retry-after" in refusal["error"]["headers"], refusal
        return str(refusal["error"]["code"])

    async def until(self, type_: str) -> None:
        while json.loads(await self.socket.recv())["type"] != type_:
            pass


class Here:
    def __init__(self, service: ChatService, url: str) -> None:
        self.service = service
        self.url = url

    @asynccontextmanager
    async def socket(self, name: str = "ada", *, framed: bool = False) -> AsyncIterator[Socket]:
        url, key = self.url.replace("http", "ws") + ("/" if framed else "/v1/responses"), KEYS[name]
        protocols = [Subprotocol(FRAMED)] if framed else None
        async with connect(url, additional_headers={"Authorization": f"Bearer {key}"}, subprotocols=protocols) as open_:
            yield Socket(open_)

    def held(self, name: str = "ada") -> int:
        return self.service._typed.held(name)


@asynccontextmanager
async def serving(limit: int = 100) -> AsyncIterator[Here]:
    hashes = {name: hash_of(key.encode()) for name, key in KEYS.items()}
    settings = Settings(engine="scripted", api_keys=hashes, max_typed_per_key=limit)
    service = service_with(says("ok"), settings=settings)
    async with asyncio.timeout(30), running_server(service) as url:
        here = Here(service, url)
        yield here
        await until(lambda: not here.held("ada") and not here.held("ben"))


REFUSED = "typed_text_limit_reached"


async def test_two_sockets_of_a_key_share_its_limit_and_another_key_has_its_own() -> None:
    async with serving() as here, here.socket() as one, here.socket(framed=True) as two, here.socket("ben") as other:
        assert await one.append(60) is None
        assert await two.append(60) == REFUSED
        assert await two.append(40) is None
        assert await one.append(1) == REFUSED
        assert await other.append(100) is None
        assert (here.held(), here.held("ben")) == (100, 100)
        await one.edit("commit")
        await one.until("response.completed")
        await two.edit("commit")
        await two.until("response.completed")
        assert here.held() == 0


@pytest.mark.parametrize("way", ["clear", "truncate", "commit", "close", "abort"])
async def test_what_is_no_longer_held_makes_room(way: str) -> None:
    async with serving() as here, here.socket() as one, here.socket() as two:
        assert await one.append(100) is None
        assert await two.append(10) == REFUSED
        match way:
            case "close":
                await one.socket.close()
            case "abort":
                one.socket.transport.abort()
            case _:
                await one.edit(way, **({"length": 90} if way == "truncate" else {}))
        await until(lambda: here.held() == (90 if way == "truncate" else 0))
        assert await two.append(10) is None
        assert await two.append(1) == (REFUSED if way == "truncate" else None)


async def test_what_comes_before_the_message_counts_too() -> None:
    async with serving() as here, here.socket() as socket:
        assert await socket.append(1, response={"input": "y" * 60, "instructions": "z" * 41}) == REFUSED
        assert here.held() == 0
        assert await socket.append(1, response={"input": "y" * 60, "instructions": "z" * 39}) is None
        assert await socket.append(1) == REFUSED
        await socket.edit("clear")
        assert await socket.append(100) is None


async def test_a_body_that_streams_in_counts_until_it_is_whole_or_given_up() -> None:
    async with serving() as here, here.socket() as socket:
        authorized = f"Authorization: Bearer {KEYS['ada']}"
        body = await upload(here.url, "/", "POST", authorized)
        body.send(b"x" * 60)
        await until(lambda: here.held() == 60)
        assert await socket.append(60) == REFUSED
        assert await socket.append(30) is None
        body.send(b"x" * 20)
        error = await body.error(429)
        assert error["code"] == REFUSED and body.response.headers["retry-after"] == "1"
        await until(lambda: here.held() == 30)
        for end in (True, False):
            body = await upload(here.url, "/", "POST", authorized)
            body.send(b"x" * 70)
            await until(lambda: here.held() == 100)
            if end:
                body.end()
                assert await body.text() == "ok"
            else:
                await body.response.close()
            await until(lambda: here.held() == 30)


def test_shares_are_counted_exactly() -> None:
    typed = TypedText(10)
    one, two = typed.share("a"), typed.share("a")
    one.resize(6)
    with pytest.raises(TypedTextLimit):
        two.resize(5)
    two.resize(4)
    one.resize(3)
    assert typed.held("a") == 7
    one.resize(0)
    one.resize(0)
    two.resize(0)
    assert typed.held("a") == 0 and not typed._held


def test_thousands_who_type_a_little_fit_the_default() -> None:
    typed = TypedText(Settings().max_typed_per_key)
    for _ in range(5_000):
        typed.share("").resize(6_000)
    assert typed.held("") == 30_000_000
