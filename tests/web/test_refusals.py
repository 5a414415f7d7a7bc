"""What is not honoured is refused by the name that the client gave it, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest

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
