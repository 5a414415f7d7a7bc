"""Requests that are wrong in every way: cases 19 to 25, 28 and 33, promise 6."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_from_bytes

import orjson
import pytest

from tests.support.process import memory_peak, reset_memory_peak
from tests.support.raw import Answer
from tests.support.served import Served, chat_body

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {CHAT: chat_body(), TEXT: {"prompt": "Hi"}}
on_json_routes = pytest.mark.parametrize("path", BODIES)


def refused(server: Served, method: str, path: str, body: bytes | dict[str, Any] | None, status: int = 400) -> Answer:
    """The refusal; the connection and the server go on as if nothing had been."""
    connection = server.connect()
    answer = connection.request(method, path, body).answer()
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.error["type"] == "invalid_request_error"
    assert len(answer.body) < 2000
    assert connection.request("POST", "/", b"Hi").answer().body == b"ok"
    return answer


def spelled(path: str, value: str, **fields: Any) -> bytes:
    """A body in which ``"@"`` is replaced by the raw JSON ``value``."""
    return orjson.dumps(BODIES[path] | fields).replace(b'"@"', value.encode())


BAD_JSON = {
    "empty": b"",
    "blank": b"  \n",
    "truncated": b'{"messages":[{"role":"user","content":"Hi"}',
    "truncated in a string": b'{"prompt":"Hi',
    "array": b"[]",
    "array of one": b'[{"prompt":"Hi"}]',
    "null": b"null",
    "number": b"1",
    "string": b'"Hi"',
    "empty object": b"{}",
    "single quotes": b"{'prompt':'Hi'}",
    "trailing comma": b'{"prompt":"Hi",}',
    "trailing garbage": b'{"prompt":"Hi"} x',
    "two objects": b'{"prompt":"Hi"}{"prompt":"Hi"}',
    "comment": b'{"prompt":"Hi"/* */}',
    "byte order mark": b'\xef\xbb\xbf{"prompt":"Hi"}',
    "UTF-16": '{"prompt":"Hi"}'.encode("utf-16"),
    "raw newline": b'{"prompt":"a\nb"}',
    "form": b"prompt=Hi",
    "deep array": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep field": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@on_json_routes
@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_refused(steady: Served, path: str, body: bytes) -> None:
    """Cases 19 and 28."""
    refused(steady, "POST", path, body)


WRONG_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "messages null": (CHAT, {"messages": None}),
    "messages empty": (CHAT, {"messages": []}),
    "messages a string": (CHAT, {"messages": "Hi"}),
    "messages an object": (CHAT, {"messages": {"role": "user", "content": "Hi"}}),
    "message a string": (CHAT, {"messages": ["Hi"]}),
    "message null": (CHAT, {"messages": [None]}),
    "message nested": (CHAT, {"messages": [[{"role": "user", "content": "Hi"}]]}),
    "role missing": (CHAT, {"messages": [{"content": "Hi"}]}),
    "role a number": (CHAT, {"messages": [{"role": 1, "content": "Hi"}]}),
    "role too long": (CHAT, {"messages": [{"role": "r" * 65, "content": "Hi"}]}),
    "content missing": (CHAT, {"messages": [{"role": "user"}]}),
    "content a number": (CHAT, {"messages": [{"role": "user", "content": 1}]}),
    "content an object": (CHAT, {"messages": [{"role": "user", "content": {"type": "text", "text": "Hi"}}]}),
    "part an image": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    "part without text": (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    "unknown member": (CHAT, {"messages": [{"role": "user", "content": "Hi", "evil": 1}]}),
    "too many messages": (CHAT, {"messages": [{"role": "user", "content": ""}] * 4097}),
    "prompt null": (TEXT, {"prompt": None}),
    "prompt empty": (TEXT, {"prompt": ""}),
    "prompt empty array": (TEXT, {"prompt": []}),
    "prompt an object": (TEXT, {"prompt": {}}),
    "prompt two strings": (TEXT, {"prompt": ["a", "b"]}),
    "prompt mixed": (TEXT, {"prompt": [1, "b"]}),
    "prompt ids out of range": (TEXT, {"prompt": [10**9]}),
    "prompt ids negative": (TEXT, {"prompt": [-1]}),
    "prompt ids booleans": (TEXT, {"prompt": [True]}),
    "prompt ids fractions": (TEXT, {"prompt": [1.5]}),
    "stream a string": (CHAT, {"stream": "yes"}),
    "stream_options a list": (CHAT, {"stream_options": []}),
    "model a number": (CHAT, {"model": 5}),
}


@pytest.mark.parametrize(("path", "fields"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_wrong_shape_is_refused(steady: Served, path: str, fields: dict[str, Any]) -> None:
    """Case 19: JSON, but not this JSON."""
    refused(steady, "POST", path, BODIES[path] | fields)


BAD_UTF8 = {
    "lone byte": b"\xff",
    "cut short": b"\xe2\x82",
    "overlong": b"\xc0\xaf",
    "past the last": b"\xf5\x80\x80\x80",
    "surrogate": b"\xed\xa0\x80",
    "surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
}


@pytest.mark.parametrize("bad", BAD_UTF8.values(), ids=BAD_UTF8)
def test_invalid_utf8_is_refused_on_every_route(steady: Served, bad: bytes) -> None:
    """Cases 20 and 21."""
    refused(steady, "POST", "/", b"Hi " + bad)
    refused(steady, "POST", "/?prompt=Hi%20" + quote_from_bytes(bad), None)
    refused(steady, "POST", "/?prompt=Hi&stop=" + quote_from_bytes(bad), None)
    for path in BODIES:
        body = orjson.dumps(BODIES[path]).replace(b"Hi", b"Hi " + bad)
        refused(steady, "POST", path, body)
        refused(steady, "POST", path, orjson.dumps(BODIES[path] | {"user": "@"}).replace(b"@", bad))


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00", "a\\ud83d b", "\\udc00\\ud800", "\\uD800\\u0041"])
@on_json_routes
def test_lone_surrogate_is_refused_in_every_field(steady: Served, path: str, escape: str) -> None:
    """Case 21."""
    refused(steady, "POST", path, orjson.dumps(BODIES[path]).replace(b"Hi", escape.encode()))
    for field in ("stop", "user", "model", "unknown"):
        refused(steady, "POST", path, spelled(path, f'"{escape}"', **{field: "@"}))
    refused(steady, "POST", path, b'{"%s":1}' % escape.encode())


def test_nul_is_text_like_any_other(steady: Served) -> None:
    """Case 22: it reaches the model as it is."""
    for method_path, body in {
        "/": b"a\0b",
        CHAT: orjson.dumps(chat_body("a\0b")),
        TEXT: orjson.dumps({"prompt": "a\0b"}),
    }.items():
        assert steady.ask("POST", method_path, body).status == 200
    assert steady.ask("POST", "/?prompt=a%00b").status == 200
    assert steady.socket().turn("a\0b") == "ok"
    for ids in list(steady.watch.prompts.values())[-5:]:
        assert b"a\0b" in bytes(id_ for id_ in ids if id_ < 256)


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\0c\r\n\r\n", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"]
)
def test_nul_in_the_head_is_refused(steady: Served, request_: bytes) -> None:
    """Case 22."""
    connection = steady.connect().send(request_)
    answer = connection.answer()
    assert answer.status == 400
    assert answer.error
    assert connection.ended()


NOT_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e309", "-1e309", "nan", "+1", "01", ".5", "0x1", "1_0"]
BAD_NUMBERS: dict[str, list[str]] = {
    "temperature": [*NOT_NUMBERS, "-0.1", "2.1", '"1"', "true", "[]", "{}"],
    "top_p": [*NOT_NUMBERS, "-1", "0", "1.1", '"1"', "false"],
    "min_p": ["-0.1", "1.5", "1e309"],
    "presence_penalty": ["-2.1", "2.1", "NaN", "1e309"],
    "frequency_penalty": ["-2.1", "2.1", "NaN", '"0"'],
    "repetition_penalty": ["0", "-1", "11", "NaN", "1e309"],
    "top_k": ["-2", "1.5", "1000001", "1e2", '"5"', "true"],
    "seed": ["1.5", "9223372036854775808", "-9223372036854775809", "18446744073709551616", '"1"', "1e309"],
    "max_tokens": ["-1", "0", "9223372036854775808", "18446744073709551616", '"5"', "true", "1.0", "1e3", "NaN", "[]"],
    "min_tokens": ["-1", "9223372036854775808", '"5"', "true", "0.5"],
    "n": ["0", "-1", "1000000000", "9223372036854775808", "1.0", '"2"', "true"],
    "ignore_eos": ["1", '"true"', "[]"],
    "stop_token_ids": ["[-1]", "[1e9]", "[true]", '["a"]', "5", '"5"', "[[1]]", "[1000000000]"],
}


@on_json_routes
@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD_NUMBERS.items() for value in values]
)
def test_bad_number_is_refused_by_its_name(steady: Served, path: str, field: str, value: str) -> None:
    """Cases 23, 24 and 25."""
    error = refused(steady, "POST", path, spelled(path, value, **{field: "@"})).error
    assert error["param"] == field or "not valid JSON" in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("temperature", "top_p") for value in [*NOT_NUMBERS[:6], "-1", "", "1,0", "٣"]),
        *(
            ("max_tokens", value)
            for value in ("-1", "0", "9223372036854775808", '"5"', "true", "", "\uff15", "1e3", " 5")
        ),
        ("seed", "9" * 5000),
        ("top_k", "-2"),
        ("ignore_eos", "perhaps"),
        ("raw", "2"),
        ("stop", ""),
        ("stop_token_ids", "9" * 30),
        ("stop_token_ids", "²"),
        ("n", "2"),
        ("messages", "Hi"),
    ],
)
def test_bad_number_in_the_query_is_refused_by_its_name(steady: Served, field: str, value: str) -> None:
    """Cases 23, 24 and 25 on the text route."""
    error = refused(steady, "POST", f"/?prompt=Hi&{field}={quote(value)}", None).error
    assert error["param"] == field


QUERIES = {
    "prompt twice": "/?prompt=a&prompt=b",
    "prompt empty": "/?prompt=",
    "no prompt": "/",
    "limit twice": "/?prompt=a&max_tokens=1&max_tokens=2",
    "unknown": "/?prompt=a&evil=1",
    "3,000 parameters": "/?" + "&".join(["stop=a"] * 3000),
    "17 stops": "/?prompt=a&" + "&".join(["stop=a"] * 17),
}


@pytest.mark.parametrize("path", QUERIES.values(), ids=QUERIES)
def test_bad_query_is_refused(steady: Served, path: str) -> None:
    """Cases 19 and 25 on the text route."""
    refused(steady, "POST", path, None)


def test_prompt_given_twice_or_as_json_is_refused(steady: Served) -> None:
    """Case 19 on the text route."""
    refused(steady, "POST", "/?prompt=a", b"b")
    refused(steady, "POST", "/", {"prompt": "a"})


HUGE = {
    "n": {"n": 10**9},
    "ten thousand stops": {"stop": ["x"] * 10_000},
    "long stop": {"stop": ["x" * 100_000]},
    "empty stop": {"stop": ""},
    "empty stop in a list": {"stop": ["a", ""]},
    "stop of numbers": {"stop": [1]},
    "stop an object": {"stop": {}},
    "a million stop ids": {"stop_token_ids": [1] * 1_000_000},
    "top_logprobs": {"logprobs": True, "top_logprobs": 10**9},
    "long unknown name": {"x" * 1_000_000: 1},
    "long model": {"model": "m" * 1_000_000},
    "a hundred thousand unknown names": {f"x{number}": 1 for number in range(100_000)},
}


@pytest.mark.parametrize("fields", HUGE.values(), ids=HUGE)
@on_json_routes
def test_huge_value_is_refused_in_constant_memory(steady: Served, path: str, fields: dict[str, Any]) -> None:
    """Case 25, promise 4: the refusal is short, and nothing grows with what was asked for."""
    if path == TEXT and "top_logprobs" in fields:
        fields = {"logprobs": 10**9}
    body = orjson.dumps(BODIES[path] | fields)
    reset_memory_peak()
    before = memory_peak()
    status = 404 if "model" in fields and len(body) < 2000 else 400
    refused(steady, "POST", path, body, status)
    assert memory_peak() - before < 12 * len(body) + 16 * 2**20


@pytest.mark.parametrize("field", ["chat_template", "chat_template_kwargs", "documents", "tokenizer", "lora_path"])
@pytest.mark.parametrize("value", ['"{{ cycler.__init__.__globals__ }}"', '{"enable_thinking":true}', "[1]"])
@on_json_routes
def test_template_sent_by_a_client_is_refused_by_its_name(steady: Served, path: str, field: str, value: str) -> None:
    """Case 33."""
    error = refused(steady, "POST", path, spelled(path, value, **{field: "@"})).error
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"


def test_template_sent_in_any_other_place_is_refused_or_text(steady: Served) -> None:
    """Case 33: in a message, in the query; in the text itself it is text."""
    evil = "{{ messages[0].__class__ }}{% for i in range(10**9) %}{% endfor %}"
    refused(steady, "POST", CHAT, {"messages": [{"role": "user", "content": "Hi", "chat_template": evil}]})
    refused(steady, "POST", "/?prompt=Hi&chat_template=" + quote(evil), None)
    assert steady.ask("POST", CHAT, {"messages": [{"role": evil[:60], "content": evil, "name": evil}]}).status == 200
    last = list(steady.watch.prompts.values())[-1]
    assert evil.encode() in bytes(id_ for id_ in last if id_ < 256)


ROUTES = {
    "GET /nothing": ("GET", "/nothing", 404),
    "DELETE /": ("DELETE", "/", 405),
    "GET chat": ("GET", CHAT, 405),
    "POST models": ("POST", "/v1/models", 405),
    "DELETE model": ("DELETE", "/v1/models/default", 405),
    "unknown model": ("GET", "/v1/models/" + "x" * 3000, 404),
    "model of dots": ("GET", "/v1/models/../../etc/passwd", 404),
    "escaped dots": ("GET", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
    "bad escapes": ("GET", "/v1/models/%ff%00%zz", 404),
    "double slash": ("POST", "//v1/chat/completions", 404),
}


@pytest.mark.parametrize(("method", "path", "status"), ROUTES.values(), ids=ROUTES)
def test_unknown_route_is_an_error_object(steady: Served, method: str, path: str, status: int) -> None:
    """Promise 6."""
    refused(steady, method, path, None, status)


@pytest.mark.parametrize("value", ["a b", "ä", "x" * 129, "", "\x7f"])
def test_bad_request_id_is_replaced_and_never_echoed(steady: Served, value: str) -> None:
    """Promise 6: what goes into an answer's headers is ours."""
    sent = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nX-Request-Id: " + value.encode() + b"\r\n\r\nHi"
    answer = steady.connect().send(sent).answer()
    assert answer.status in (200, 400)
    assert answer.status == 400 or answer.headers["x-request-id"].isalnum()
