"""Clients that ask for one answer and pick it up again after every cut until they have it whole, one for each protocol.

They check as they go what must hold whatever happens: numbers only rise, nothing comes after the end, and there is one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from tests.support.raw import parts_of_event, request_bytes

Body = dict[str, Any]
_TERMINALS = ("response.completed", "response.incomplete", "response.failed")


class Broken(Exception):
    """The connection ended, or fell silent, before the answer was whole."""


@dataclass(frozen=True, slots=True)
class Exchange:
    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader
    patience: float

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; ends only where it has its proper end. Raises Broken."""
        if "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left:
                yield (piece := await self._some(left))
                left -= len(piece)
            return
        assert self.headers["transfer-encoding"] == "chunked"
        while left := int(await self._line(), 16):
            while left:
                yield (piece := await self._some(left))
                left -= len(piece)
            assert await self._line() == b""
        assert await self._line() == b""

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def _some(self, most: int) -> bytes:
        piece = await _patiently(self.reader.read(most), self.patience)
        if not piece:
            raise Broken
        return piece

    async def _line(self) -> bytes:
        return (await _patiently(self.reader.readuntil(b"\r\n"), self.patience))[:-2]


async def _patiently(reading: Any, patience: float) -> bytes:
    try:
        async with asyncio.timeout(patience):
            data: bytes = await reading
            return data
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise Broken from error


@asynccontextmanager
async def exchange(address: tuple[str, int], request: bytes, patience: float) -> AsyncIterator[Exchange]:
    """Send a request on a connection of its own; gives its answer's head. Raises Broken."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError as error:
        raise Broken from error
    try:
        writer.write(request)
        head = (await _patiently(reader.readuntil(b"\r\n\r\n"), patience)).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        yield Exchange(int(head[0].split()[1]), headers, reader, patience)
    finally:
        writer.transport.abort()


class Client(ABC):
    """One answer on its way. ``id`` is the request's own where the protocol lets a client choose it."""

    framing = 10.0
    """How many times as long as its text a streamed answer is, at least: where cuts are to fall."""

    def __init__(self, id_: str, prompt: str, wish: str = "continue", **sampling: Any) -> None:
        self.id = id_
        self.prompt = prompt
        self.wish = wish
        self.sampling = sampling
        self.breaks = 0
        self.whole = False

    @property
    @abstractmethod
    def text(self) -> str:
        """All that came, joined."""

    @abstractmethod
    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        """Method, path, body and headers of what to ask next."""

    @abstractmethod
    async def take(self, answer: Exchange) -> None:
        """Read what was answered; sets ``whole``."""

    @abstractmethod
    def where(self) -> str:
        """The path under which the server has the whole answer."""

    async def run(self, address: tuple[str, int], patience: float = 1.0) -> None:
        while not self.whole:
            method, path, body, headers = self.next()
            request = request_bytes(f"{address[0]}:{address[1]}", method, path, body, headers)
            try:
                async with exchange(address, request, patience) as answer:
                    await self.take(answer)
            except Broken:
                self.breaks += 1


class EventClient(Client):
    """Reads server-sent events, and only those that came to their blank line."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.pieces: list[str] = []
        self.ended = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @abstractmethod
    def event(self, name: str | None, id_: str | None, data: bytes) -> None: ...

    async def read_events(self, answer: Exchange) -> None:
        buffer = b""
        async for piece in answer.pieces():
            buffer += piece
            *blocks, buffer = buffer.split(b"\n\n")
            for block in blocks:
                found = parts_of_event(block)
                if found is not None:
                    assert not self.ended, (found, "came after the end")
                    self.event(*found)
        assert not buffer
        assert self.ended == 1, "the body ended well, without an end of the stream"


class _ById(EventClient):
    """A stream with ``id:`` lines: the client chose its id, and knows from the start where to look for it."""

    place: tuple[int, int] = (0, 0)
    last_id: str | None = None
    _unknown = False
    """The server said that it has no such stream: it is to be asked from the start."""

    async def take(self, answer: Exchange) -> None:
        if answer.status in (404, 409):
            # 404: the cut came before the server had the request. 409: it had it all the same.
            assert self.last_id is None, "a stream that had begun is gone"
            self._unknown = answer.status == 404
            await answer.body()
            return
        assert answer.status == 200, await answer.body()
        self._unknown = False
        await self.read_events(answer)
        self.whole = True

    def seen(self, id_: str) -> None:
        request, _, place = id_.rpartition(":")
        assert request == self.id
        whole, _, pieces = place.partition(".")
        here = (int(whole) - 1, int(pieces)) if pieces else (int(whole), 0)
        assert here > self.place, (here, self.place)
        self.place, self.last_id = here, id_

    @property
    def begin(self) -> bool:
        return self._unknown or (not self.breaks and self.last_id is None)


class Chat(_ById):
    """Chat completions: the same request again, with ``Last-Event-ID``."""

    path = "/v1/chat/completions"

    def request_body(self) -> Body:
        return {
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": True,
            "on_disconnect": self.wish,
            "stream_options": {"include_usage": True},
            **self.sampling,
        }

    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        headers = {"X-Request-Id": self.id}
        if not self.begin:
            headers = {"Last-Event-ID": self.last_id or f"{self.id}:0"}
        return "POST", self.path, self.request_body(), headers

    def where(self) -> str:
        return f"{self.path}/{self.id}"

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.reasons: list[str] = []
        self.usages: list[Body] = []

    def event(self, name: str | None, id_: str | None, data: bytes) -> None:
        assert name is None and id_ is not None
        self.seen(id_)
        if data == b"[DONE]":
            assert len(self.reasons) == 1 and len(self.usages) == 1
            self.ended += 1
            return
        chunk = orjson.loads(data)
        assert "error" not in chunk, chunk
        self.usages += [chunk["usage"]] if chunk.get("usage") else []
        for choice in chunk["choices"]:
            self.pieces.append(choice["delta"].get("content", "") if "delta" in choice else choice["text"])
            self.reasons += [choice["finish_reason"]] if choice["finish_reason"] else []


class ChatByGet(Chat):
    """Chat completions: ``GET`` with the place in the query."""

    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        if self.begin:
            return super().next()
        place = (self.last_id or ":0").rpartition(":")[2]
        query = f"?stream=true&include_usage=true&starting_after={place}"
        return "GET", f"{self.path}/{self.id}{query}", None, {}


class Completion(ChatByGet):
    """Text completions."""

    path = "/v1/completions"

    def request_body(self) -> Body:
        body = super().request_body()
        del body["messages"]
        return body | {"prompt": self.prompt}


class TextEvents(_ById):
    """``POST /`` as events, and ``GET /streams/…`` with ``Last-Event-ID``."""

    framing = 2.0

    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        accept = {"Accept": "text/event-stream"}
        if not self.begin:
            return "GET", f"/streams/{self.id}", None, {"Last-Event-ID": self.last_id or f"{self.id}:0"} | accept
        headers = {"X-Request-Id": self.id, "X-On-Disconnect": self.wish} | accept
        query = "&".join(f"{name}={value}" for name, value in self.sampling.items())
        return "POST", f"/?{query}", self.prompt.encode(), headers

    def where(self) -> str:
        return f"/streams/{self.id}"

    def event(self, name: str | None, id_: str | None, data: bytes) -> None:
        assert id_ is not None
        self.seen(id_)
        if name is None:
            self.pieces.append(orjson.loads(data))
            return
        assert name == "done", data
        self.ended += 1


class PlainText(TextEvents):
    """``POST /`` as bare text, which knows no places: it is read again from its beginning."""

    framing = 1.0
    had = b""

    @property
    def text(self) -> str:
        return self.had.decode()

    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        method, path, body, headers = super().next()
        kept = {name: value for name, value in headers.items() if name not in ("Accept", "Last-Event-ID")}
        return method, path, body, kept

    async def read_events(self, answer: Exchange) -> None:
        now = b""
        async for piece in answer.pieces():
            now += piece
            size = min(len(now), len(self.had))
            assert now[:size] == self.had[:size], "it says something else than before"
            self.had = max(self.had, now, key=len)
        assert now == self.had, "what was said before is not there"


class WholeChat(ChatByGet):
    """A chat completion that is not streamed, and is fetched when it was cut."""

    framing = 1.0
    content = ""

    @property
    def text(self) -> str:
        return self.content

    def request_body(self) -> Body:
        return super().request_body() | {"stream": False, "stream_options": None}

    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        method, path, body, headers = super().next()
        return method, path.partition("?")[0], body, headers

    async def read_events(self, answer: Exchange) -> None:
        (choice,) = orjson.loads(await answer.body())["choices"]
        assert choice["finish_reason"] in ("stop", "length")
        self.content = choice["message"]["content"]


class Responses(EventClient):
    """``POST /v1/responses`` as a stream, and ``GET`` behind the last number. Its id comes with its first event."""

    background = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.response: str | None = None
        self.number = -1
        self.said: list[str] = []
        """What the events that close the text say of it."""

    def request_body(self) -> Body:
        sampling = dict(self.sampling)
        if "max_tokens" in sampling:
            sampling["max_output_tokens"] = sampling.pop("max_tokens")
        body = {"input": self.prompt, "stream": not self.background, **sampling}
        return body | ({"background": True} if self.background else {"on_disconnect": self.wish})

    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        if self.response is None:
            return "POST", "/v1/responses", self.request_body(), {}
        after = f"&starting_after={self.number}" if self.number >= 0 else ""
        return "GET", f"/v1/responses/{self.response}?stream=true{after}", None, {}

    def where(self) -> str:
        return f"/v1/responses/{self.response}"

    async def take(self, answer: Exchange) -> None:
        assert answer.status == 200, await answer.body()
        await self.read_events(answer)
        self.whole = True

    def event(self, name: str | None, id_: str | None, data: bytes) -> None:
        event = orjson.loads(data)
        assert event["type"] == name and event["sequence_number"] > self.number, (event, self.number)
        self.number = event["sequence_number"]
        if name == "response.created":
            self.response = event["response"]["id"]
        elif name == "response.output_text.delta":
            self.pieces.append(event["delta"])
        elif name == "response.output_text.done":
            self.said.append(event["text"])
        elif name == "response.output_item.done":
            self.said.append(event["item"]["content"][0]["text"])
        elif name in _TERMINALS:
            self.said += [item["content"][0]["text"] for item in event["response"]["output"]]
            assert self.said == [self.text] * 3
            assert event["response"]["status"] in ("completed", "incomplete"), event
            self.ended += 1


class Background(Responses):
    """A response in the background: made without a stream, read by its number, then fetched whole."""

    background = True

    async def take(self, answer: Exchange) -> None:
        assert answer.status == 200, await answer.body()
        if self.response is None:
            self.response = orjson.loads(await answer.body())["id"]
        elif not self.ended:
            await self.read_events(answer)
        else:
            body = orjson.loads(await answer.body())
            assert body["output"][0]["content"][0]["text"] == self.text
            self.whole = True

    def next(self) -> tuple[str, str, Body | bytes | None, dict[str, str]]:
        return ("GET", self.where(), None, {}) if self.ended else super().next()


CLIENTS: dict[str, type[Client]] = {
    "chat completions, POST again": Chat,
    "chat completions, GET": ChatByGet,
    "text completions, GET": Completion,
    "text as events": TextEvents,
    "plain text": PlainText,
    "chat completions, not streamed": WholeChat,
    "responses": Responses,
    "responses, in the background": Background,
}


def whole_text(path: str, body: bytes) -> str:
    """What the answer that ``Client.where`` names says."""
    if path.startswith("/streams/"):
        return body.decode()
    said = orjson.loads(body)
    if path.startswith("/v1/responses/"):
        assert said["status"] in ("completed", "incomplete"), said
        return "".join(item["content"][0]["text"] for item in said["output"])
    (choice,) = said["choices"]
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text
