"""``Idempotency-Key`` on ``/v1/responses``: a request that is sent twice is carried out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from causerie.config import Settings
from causerie.keys import hash_of
from tests.support.http import RawResponse, send
from tests.support.server import running_server
from tests.support.service import endless, service_with, until_idle

ANSWER = "Ein Löwe 🦁 läuft."


class Counting:
    """A script that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, prompt: Sequence[int]) -> Sequence[int]:
        self.asked += 1
        return ANSWER.encode()


@asynccontextmanager
async def serving(script: Counting, **settings: Any) -> AsyncIterator[str]:
    service = service_with(script, settings=Settings(engine="scripted", **settings))
    async with asyncio.timeout(30), running_server(service) as url:
        yield url


async def create(url: str, key: str | None, *, bearer: str | None = None, **fields: Any) -> RawResponse:
    sent = {} if key is None else {"Idempotency-Key": key}
    if bearer is not None:
        sent["Authorization"] = f"Bearer {bearer}"
    response = await send(url, "POST", "/v1/responses", {"input": "Hi"} | fields, sent)
    await response.head()
    return response


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"seed": 3, "instructions": "Be kind.", "stop": ["@"]}])
async def test_the_same_request_gives_the_same_response(fields: dict[str, Any]) -> None:
    script = Counting()
    async with serving(script) as url:
        first = await create(url, "k1", **fields)
        body = await first.body()
        second = await create(url, "k1", **fields)
        again = await second.body()
        assert (first.status, second.status, script.asked) == (200, 200, 1)
        if "stream" not in fields:
            assert again == body
        assert body.split(b'"id":"resp_')[1][:32] == again.split(b'"id":"resp_')[1][:32]
        await (await create(url, "k2", **fields)).body()
        await (await create(url, None, **fields)).body()
        assert script.asked == 3


async def test_one_that_runs_is_joined() -> None:
    service = service_with(endless, step_seconds=0.002)
    async with asyncio.timeout(30), running_server(service) as url:
        fields: dict[str, Any] = {"stream": True, "max_output_tokens": 50}
        first, second = await asyncio.gather(create(url, "k", **fields), create(url, "k", **fields))
        bodies = [await each.body() for each in (first, second) if each.status == 200]
        # The second may have come before the first was on its way: then it is told to come again.
        assert {first.status, second.status} <= {200, 409} and bodies
        third = await create(url, "k", **fields)
        assert b"response.incomplete" in await third.body()
        await until_idle(service)


@pytest.mark.parametrize(
    "fields", [{"input": "Ho"}, {"instructions": "Be kind."}, {"seed": 4}, {"previous_response_id": "resp_x"}]
)
async def test_a_key_stands_for_one_request_only(fields: dict[str, Any]) -> None:
    script = Counting()
    async with serving(script) as url:
        await (await create(url, "k")).body()
        other = await create(url, "k", **fields)
        assert other.status == 409
        error = (await other.json())["error"]
        assert (error["code"], error["param"], script.asked) == ("duplicate_request", "Idempotency-Key", 1)


async def test_a_refused_request_uses_no_key_up() -> None:
    script = Counting()
    async with serving(script) as url:
        assert (await create(url, "k", temperature=-1)).status == 400
        assert (await create(url, "k")).status == 200


async def test_keys_are_the_owners_own() -> None:
    script, owners = Counting(), {"alice": "a" * 20, "bob": "b" * 20}
    async with serving(script, api_keys={name: hash_of(key.encode()) for name, key in owners.items()}) as url:
        for key in owners.values():
            response = await create(url, "k", bearer=key)
            assert response.status == 200
            await response.body()
        assert script.asked == 2


@pytest.mark.parametrize(("key", "fields"), [("a b", {}), ("k" * 256, {}), ("", {}), ("k", {"store": False})])
async def test_a_key_that_cannot_be_honoured_is_refused_by_name(key: str, fields: dict[str, Any]) -> None:
    async with serving(Counting()) as url:
        refused = await create(url, key, **fields)
        assert refused.status == 400
        assert (await refused.json())["error"]["param"] == "Idempotency-Key"
