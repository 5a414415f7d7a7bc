"""Whatever is sent: no 5xx, no hang, an error object or a good answer. Promise 6 as a property."""

from __future__ import annotations

import select
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes, urlencode

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from causerie.config import Settings
from tests.support.raw import Answer, ChatSocket, Connection, content, frame
from tests.support.served import SONG, Served, chat_body, scripted, served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """Its aftermath is checked once everything was thrown at it."""
    tight = Settings(engine="scripted", max_tokens=64, body_timeout=1.0)
    with served(scripted(lambda _: b"ok", tight, ids_per_step=512), song=SONG) as running:
        yield running


fuzzing = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "0", "5", "user", "<|im_end|>", "\0", "default", "text"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
small = st.integers(-2, 40)
plausible = {
    "model": st.sampled_from(["default", "scripted", "", None, "gpt-4"]),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": small}),
    "n": st.integers(0, 5),
    "max_tokens": small,
    "max_completion_tokens": small,
    "min_tokens": small,
    "temperature": st.floats(-0.1, 2.1),
    "top_p": st.floats(-0.1, 1.1),
    "min_p": st.floats(-0.1, 1.1),
    "top_k": st.integers(-3, 100),
    "presence_penalty": st.floats(-3, 3),
    "frequency_penalty": st.floats(-3, 3),
    "repetition_penalty": st.floats(-1, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(max_size=4) | st.lists(st.text(max_size=4), max_size=5),
    "stop_token_ids": st.lists(st.integers(-1, 300), max_size=4),
    "ignore_eos": st.booleans(),
    "logprobs": st.booleans() | st.integers(0, 3),
    "top_logprobs": st.integers(0, 2),
    "tools": st.lists(anything, max_size=2),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {}]),
    "user": st.text(max_size=5),
    "echo": st.booleans(),
    "logit_bias": st.dictionaries(st.text(string.digits, max_size=3), st.integers(-100, 100), max_size=2),
    "best_of": small,
    "suffix": st.text(max_size=3),
}
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x", "<|im_start|>"])},
    optional={
        "content": st.text(max_size=50) | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})),
        "name": st.text(max_size=5),
        "tool_calls": anything,
    },
)
prompt = st.text(max_size=50) | st.lists(st.integers(-1, 300), max_size=20) | st.lists(st.text(max_size=5), max_size=2)


def bodies(required: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies that are nearly right: a few fields, most as they should be, some as they may come, some unknown."""
    field = st.sampled_from(sorted(plausible)).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(*[plausible[name]] * 5, anything))
    )
    optional = st.lists(field, max_size=5).map(dict)
    extra = st.one_of(*[st.just({})] * 5, st.dictionaries(st.text(max_size=10), anything, max_size=1))
    return st.builds(lambda *parts: parts[0] | parts[1] | parts[2], extra, optional, st.fixed_dictionaries(required))


def check(answer: Answer) -> None:
    """A whole answer of the right shape, or a refusal that says what was wrong."""
    assert answer.status == 200 or 400 <= answer.status < 500, answer
    if answer.status != 200:
        assert answer.headers["content-type"] == "application/json"
        assert answer.error["type"] in ("invalid_request_error", "rate_limit_error")
    elif answer.headers["content-type"].startswith("text/event-stream"):
        content(answer.body)
    elif answer.headers["content-type"] == "application/json":
        assert all(choice["finish_reason"] in ("stop", "length") for choice in answer.json()["choices"])
    else:
        answer.body.decode("utf-8")


@fuzzing
@given(body=bodies({"messages": st.lists(message, min_size=1, max_size=4)}))
def test_any_chat_body_is_answered_or_refused(server: Served, body: dict[str, Any]) -> None:
    check(server.ask("POST", CHAT, orjson.dumps(body)))


@fuzzing
@given(body=bodies({"prompt": prompt}))
def test_any_completion_body_is_answered_or_refused(server: Served, body: dict[str, Any]) -> None:
    check(server.ask("POST", TEXT, orjson.dumps(body)))


@fuzzing
@given(place=st.integers(0, 200), cut=st.integers(0, 5), put=st.binary(max_size=5))
def test_any_damage_to_a_body_is_answered_or_refused(server: Served, place: int, cut: int, put: bytes) -> None:
    good = orjson.dumps(chat_body("Hé 😀", stream=True, n=2, stop=["x", "\\"], temperature=0.5, seed=7, logprobs=True))
    check(server.ask("POST", CHAT, good[:place] + put + good[place + cut :]))


@fuzzing
@given(
    query=st.dictionaries(
        st.sampled_from(["prompt", "raw", "n", "evil", *plausible]), st.text(max_size=6) | small.map(str), max_size=6
    ).map(lambda pairs: urlencode(pairs, errors="surrogatepass").encode())
    | st.binary(max_size=30).map(lambda data: quote_from_bytes(data, safe="=&;+").encode()),
    body=st.binary(max_size=20),
)
def test_any_text_request_is_answered_or_refused(server: Served, query: bytes, body: bytes) -> None:
    check(server.ask("POST", "/?" + query.decode(), body))


@fuzzing
@given(place=st.integers(0, 130), cut=st.integers(0, 4), put=st.binary(max_size=4))
def test_any_damage_to_a_head_is_answered_refused_or_dropped(server: Served, place: int, cut: int, put: bytes) -> None:
    good = b"POST /?max_tokens=5 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nHi"
    with Connection(server.address) as connection:
        connection.send(good[:place] + put + good[place + cut :])
        select.select([connection.socket], [], [], 0.05)
        connection.half_close()
        for answer in connection.rest().split(b"HTTP/1.1 ")[1:]:
            assert answer.startswith((b"200", b"4")), answer


@fuzzing
@given(
    pieces=st.lists(
        st.binary(max_size=20)
        | st.builds(
            frame,
            st.integers(0, 15),
            st.binary(max_size=130),
            fin=st.booleans(),
            rsv=st.sampled_from([0, 0, 0, 4]),
            masked=st.sampled_from([True, True, True, False]),
        ),
        max_size=5,
    )
)
def test_any_bytes_on_a_socket_end_in_an_answer_or_a_close(server: Served, pieces: list[bytes]) -> None:
    with ChatSocket(server.address) as socket:
        socket.open()
        try:
            for piece in pieces:
                socket.send(piece)
            socket.half_close()
        except OSError:
            pass  # It was closed for what came before.
        socket.rest()
