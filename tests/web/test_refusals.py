"""What is not honoured is refused by the name that the client gave it, over real sockets."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.support.http import chat_body, send
from tests.support.server import running_server
from tests.support.service import says, service_with


async def refusal(url: str, method: str, path: str, body: bytes | dict[str, Any] = b"") -> dict[str, Any]:
    """The error object of a request that must be refused with 400."""
    answer = await send(url, method, path, body)
    assert await answer.head() == 400
    error: dict[str, Any] = (await answer.json())["error"]
    return error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "Hi", "logprobs": 3}, "logprobs"),
        ("/v1/chat/completions", chat_body(logprobs=True, top_logprobs=3), "top_logprobs"),
        (
            "/v1/responses",
            {"input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 3},
            "top_logprobs",
        ),
    ],
)
async def test_more_alternatives_than_the_engine_has_are_refused_by_the_routes_own_name(
    path: str, body: dict[str, Any], param: str
) -> None:
    async with running_server(service_with(says("a"))) as url:
        error = await refusal(url, "POST", path, body)
        assert (error["code"], error["param"]) == ("unsupported_parameter", param)
        assert f"'{param}' is 3" in error["message"] and "at most 0" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/", "GET, HEAD, POST, PUT"),
        ("POST", "/streams/x", "DELETE, GET, HEAD"),
        ("GET", "/v1/responses", "POST"),
        ("PUT", "/v1/responses/r", "DELETE, GET, HEAD"),
        ("GET", "/v1/responses/r/cancel", "POST"),
        ("PUT", "/v1/conversations/c", "DELETE, GET, HEAD, POST"),
        ("DELETE", "/v1/conversations/c/items", "GET, HEAD, POST"),
        ("POST", "/v1/conversations/c/items/i", "DELETE, GET, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_told_of_all_that_it_takes(
    method: str, path: str, allowed: str
) -> None:
    async with running_server(service_with(says("a"))) as url:
        answer = await send(url, method, path)
        assert await answer.head() == 405
        assert answer.headers["allow"] == allowed
        error = (await answer.json())["error"]
        assert error["code"] == "method_not_allowed"
        assert error["message"] == f"{method} {path}: this path takes {allowed} only."


@pytest.mark.parametrize("path", ["/nope", "/v1/models", "/v1/responses/r"])
async def test_a_socket_that_is_not_there_is_refused_as_a_route_that_is_not(path: str) -> None:
    async with running_server(service_with(says("a"))) as url:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url.replace("http", "ws") + path, additional_headers={"X-Request-Id": "mine"})
        answer = caught.value.response
        assert (answer.status_code, answer.headers["x-request-id"]) == (404, "mine")
        error = orjson.loads(answer.body)["error"]
        assert error["code"] == "unknown_route" and error["message"].startswith(f"WebSocket {path}: ")


ROUTES: list[tuple[str, str, bytes | dict[str, Any]]] = [
    ("DELETE", "/streams/x", b""),
    ("POST", "/v1/chat/completions", chat_body()),
    ("POST", "/v1/completions", {"prompt": "Hi"}),
    ("POST", "/v1/responses", {"input": "Hi"}),
    ("GET", "/v1/responses/r", b""),
    ("DELETE", "/v1/responses/r", b""),
    ("POST", "/v1/responses/r/cancel", b""),
    ("POST", "/v1/responses/r/ack", {"text_end": 0}),
    ("GET", "/v1/responses/r/input_items", b""),
    ("POST", "/v1/conversations", b""),
    ("GET", "/v1/conversations/c", b""),
    ("POST", "/v1/conversations/c", {"metadata": None}),
    ("DELETE", "/v1/conversations/c", b""),
    ("GET", "/v1/conversations/c/items", b""),
    ("POST", "/v1/conversations/c/items", {"items": [{"role": "user", "content": "Hi"}]}),
    ("GET", "/v1/conversations/c/items/i", b""),
    ("DELETE", "/v1/conversations/c/items/i", b""),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_no_route_ignores_what_its_query_says(method: str, path: str, body: bytes | dict[str, Any]) -> None:
    service = service_with(says("a"))
    async with running_server(service) as url:
        error = await refusal(url, method, f"{path}?nosuch=1", body)
        assert (error["code"], error["param"]) == ("unsupported_parameter", "nosuch")
        assert b"causerie:requests_total 0.0" in service.metrics.render()
        answer = await send(url, method, f"{path}?api-version=2024-10-21", body)
        assert await answer.head() in (200, 404)


async def test_a_prompt_in_a_get_is_told_how_to_be_sent() -> None:
    async with running_server(service_with(says("a"))) as url:
        error = await refusal(url, "GET", "/?prompt=hi")
        assert (error["param"], error["message"]) == ("prompt", "A prompt is sent with POST or PUT, not with GET.")


async def test_a_cancel_takes_no_fields() -> None:
    async with running_server(service_with(says("a"))) as url:
        made = await send(url, "POST", "/v1/responses", {"input": "Hi"})
        assert await made.head() == 200
        path = f"/v1/responses/{(await made.json())['id']}/cancel"
        assert (await refusal(url, "POST", path, {"reason": "bored"}))["param"] == "reason"
        for body in (b"", b"{}"):
            answer = await send(url, "POST", path, body)
            assert await answer.head() == 200


async def test_an_acknowledgement_of_something_unknown_names_it() -> None:
    async with running_server(service_with(says("a"))) as url:
        error = await refusal(url, "POST", "/v1/responses/r/ack", {"foo": 1})
        assert (error["code"], error["param"]) == ("unsupported_parameter", "foo")


@pytest.mark.parametrize(
    ("method", "path", "body"), [route for route in ROUTES if route[1].startswith("/v1/conversations/")]
)
async def test_a_conversation_that_is_not_there_has_one_name_on_all_its_routes(
    method: str, path: str, body: bytes | dict[str, Any]
) -> None:
    async with running_server(service_with(says("a"))) as url:
        answer = await send(url, method, path, body)
        assert await answer.head() == 404
        error = (await answer.json())["error"]
        assert (error["code"], error["param"]) == ("conversation_not_found", "conversation_id")
