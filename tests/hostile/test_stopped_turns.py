"""A turn is stopped and the next one sent at once: case 7, and case 8 for streams that nobody reads."""

from __future__ import annotations

import threading
from typing import Any

import orjson
import pytest

from causerie.keys import ANONYMOUS
from tests.hostile.conftest import Serve
from tests.hostile.test_disconnect import endless, spelled
from tests.support.raw import Connection, content, parts_of_event
from tests.support.served import Served, chat_body, until


def first_events(connection: Connection, text: int) -> list[dict[str, Any]]:
    """The events of a response up to so many pieces of text."""
    connection.head()
    found: list[dict[str, Any]] = []
    while sum(event["type"] == "response.output_text.delta" for event in found) < text:
        found += events_of(connection.chunk())
    return found


def rest_of(connection: Connection) -> list[dict[str, Any]]:
    found = []
    while piece := connection.chunk():
        found += events_of(piece)
    return found


def events_of(piece: bytes) -> list[dict[str, Any]]:
    """The server never splits an event between chunks."""
    parts = [parts_of_event(block) for block in piece.split(b"\n\n") if block]
    return [orjson.loads(part[2]) for part in parts if part is not None]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def answered(server: Served, fields: dict[str, Any]) -> dict[str, Any]:
    answer = server.ask("POST", "/v1/responses", fields)
    while answer.status == 409:
        assert answer.error["code"] == "conversation_locked"
        answer = server.ask("POST", "/v1/responses", fields)
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("through", ["conversation", "previous_response_id"])
@pytest.mark.parametrize("stop", ["cancel", "leave"])
def test_history_after_a_stopped_turn_holds_only_what_was_said(serve: Serve, stop: str, through: str) -> None:
    server = serve(endless, step_seconds=0.002)
    talk = server.ask("POST", "/v1/conversations", {}).json()["id"]
    context = {"conversation": talk} if through == "conversation" else {}
    stream = server.request("POST", "/v1/responses", {"input": "one", "stream": True, **context})
    events = first_events(stream, text=4)
    id_ = events[0]["response"]["id"]
    if stop == "cancel":
        cancelled = server.ask("POST", f"/v1/responses/{id_}/cancel")
        assert cancelled.status == 200 and cancelled.json()["status"] == "cancelled"
        events += rest_of(stream)
        assert events[-1]["response"] == cancelled.json()
    else:
        stream.reset()
        until(lambda: server.ask("GET", f"/v1/responses/{id_}").json()["status"] == "cancelled", within=5.0)
    following = {"conversation": talk} if through == "conversation" else {"previous_response_id": id_}
    answered(server, {"input": "two", "max_output_tokens": 3, **following})
    (item,) = server.ask("GET", f"/v1/responses/{id_}").json()["output"]
    said = item["content"][0]["text"]
    assert item["status"] == "incomplete"
    assert said == text_of(events) if stop == "cancel" else said.startswith(text_of(events))
    assert spelled(server, list(server.watch.prompts.values())[-1]) == (
        f"<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_next_turn_sent_while_a_client_leaves_waits_for_what_was_said(serve: Serve) -> None:
    server = serve(endless, step_seconds=0.002)
    talk = server.ask("POST", "/v1/conversations", {}).json()["id"]
    stream = server.request("POST", "/v1/responses", {"input": "one", "stream": True, "conversation": talk})
    had = text_of(first_events(stream, text=4))
    stream.reset()
    answered(server, {"input": "two", "max_output_tokens": 3, "conversation": talk})
    items = server.ask("GET", f"/v1/conversations/{talk}/items?order=asc").json()["data"]
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant"]
    assert items[1]["content"][0]["text"].startswith(had) and items[1]["status"] == "incomplete"
    last = spelled(server, list(server.watch.prompts.values())[-1])
    assert f"assistant\n{items[1]['content'][0]['text']}<|im_end|>\n<|im_start|>user\ntwo<|im_end|>" in last


def test_id_of_a_stream_that_nobody_reads_is_refused_and_the_stream_goes_on(serve: Serve) -> None:
    """Case 8: it runs, though its client has left."""
    permits = threading.Semaphore(0)
    server = serve(lambda _: b"all of it", permits=permits)
    mine, body = {"X-Request-Id": "mine"}, chat_body(stream=True, on_disconnect="continue")
    first = server.request("POST", "/v1/chat/completions", body, mine)
    first.head()
    first.reset()
    until(lambda: not server.service.streams.find(ANONYMOUS, "mine").log.reader_count, within=5.0)
    for path, again in (("/v1/chat/completions", body), ("/", b"Hi")):
        second = server.ask("POST", path, again, mine)
        assert second.status == 409 and second.error["code"] == "duplicate_request"
    permits.release(1000)
    assert content(numberless(server.ask("GET", "/v1/chat/completions/mine?stream=true").body)) == "all of it"


def numberless(body: bytes) -> bytes:
    return b"\n".join(line for line in body.split(b"\n") if not line.startswith(b"id: "))
