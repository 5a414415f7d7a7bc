"""Stored responses of a real server, from the client's side: made, read as they come, and looked at afterwards."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from tests.support.raw import Answer, Connection, Truncated, parts_of_event

TERMINALS = ("response.completed", "response.incomplete", "response.failed")


class Addressed(Protocol):
    """A server, on one machine or on Ray."""

    @property
    def address(self) -> tuple[str, int]: ...


def ask(server: Addressed, method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
    with Connection(server.address, timeout=30) as connection:
        return connection.request(method, path, body, headers).answer()


def made(server: Addressed, path: str, **fields: Any) -> dict[str, Any]:
    """What a POST that has to succeed says."""
    answer = ask(server, "POST", path, fields)
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


def said(response: dict[str, Any]) -> str:
    """The text of a response object."""
    return "".join(part["text"] for item in response["output"] for part in item["content"])


@dataclass
class Stream:
    """A response's events as one client got them, until they or the connection ended."""

    events: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False
    """The body had its proper end."""
    status: int = 0
    begun: threading.Event = field(default_factory=threading.Event)
    """Some text came, or the end."""

    @property
    def id(self) -> str:
        found: str = self.events[0]["response"]["id"]
        return found

    @property
    def text(self) -> str:
        return "".join(event["delta"] for event in self.events if event["type"] == "response.output_text.delta")

    @property
    def end(self) -> dict[str, Any]:
        """The response in the one terminal event, which is the last; fails if that is not so."""
        kinds = [event["type"] for event in self.events]
        assert sum(kind in TERMINALS for kind in kinds) == 1 and kinds[-1] in TERMINALS, kinds
        found: dict[str, Any] = self.events[-1]["response"]
        return found

    @property
    def ended(self) -> bool:
        return any(event["type"] in TERMINALS for event in self.events)

    def read(self, connection: Connection) -> None:
        buffer = b""
        try:
            self.status, _ = connection.head()
            while piece := connection.chunk():
                buffer += piece
                *blocks, buffer = buffer.split(b"\n\n")
                for block in blocks:
                    if (parts := parts_of_event(block)) is not None:
                        self.events.append(orjson.loads(parts[2]))
                if self.text:
                    self.begun.set()
            self.whole = True
        except (Truncated, ConnectionError):
            pass
        finally:
            self.begun.set()


class Streaming:
    """Reads a stream in a thread of its own: that of a new response, or of one that there is."""

    def __init__(
        self, server: Addressed, headers: Any = None, *, again: str = "", after: int = -1, **fields: Any
    ) -> None:
        self.stream = Stream()
        self._connection = Connection(server.address, timeout=60)
        if again:
            self._connection.request("GET", _again(again, after), None, headers)
        else:
            self._connection.request("POST", "/v1/responses", {"stream": True, **fields}, headers)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._connection:
            self.stream.read(self._connection)

    def begun(self) -> Stream:
        assert self.stream.begun.wait(30)
        assert self.stream.status == 200
        return self.stream

    def finish(self, within: float = 60.0) -> Stream:
        self._thread.join(within)
        assert not self._thread.is_alive()
        return self.stream


def read_again(server: Addressed, id_: str, after: int = -1, headers: Any = None) -> Stream:
    stream = Stream()
    with Connection(server.address, timeout=30) as connection:
        stream.read(connection.request("GET", _again(id_, after), None, headers))
    assert stream.status == 200 and stream.whole
    return stream


def _again(id_: str, after: int) -> str:
    """``after`` -1 is from the start on."""
    return f"/v1/responses/{id_}?stream=true" + (f"&starting_after={after}" if after >= 0 else "")
