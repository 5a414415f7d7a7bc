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
