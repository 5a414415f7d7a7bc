"""Turn by turn only new tokens are computed, and a miss says why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from causerie.chat.memory import Memory
from causerie.chat.service import ChatService
from causerie.text.turns import Seen
from tests.support.server import running_server
from tests.support.service import says, service_with


@asynccontextmanager
async def client_of(service: ChatService) -> AsyncIterator[AsyncOpenAI]:
    async with running_server(service) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        yield client


def cached(response: Response) -> int:
    assert response.usage is not None
    return response.usage.input_tokens_details.cached_tokens


def miss(response: Response) -> object:
    found = response.model_dump()["prompt_cache_diagnostics"]
    return found["type"], found.get("cause")


async def test_the_next_turn_finds_what_was_computed() -> None:
    async with client_of(service_with(says("a" * 200))) as client:
        first = await client.responses.create(model="default", input="b" * 300)
        second = await client.responses.create(model="default", input="And?", previous_response_id=first.id)
        assert cached(second) > 450 and miss(second) == ("cache_hit", None)


async def test_changed_instructions_are_named_as_the_cause() -> None:
    async with client_of(service_with(says("a" * 200))) as client:
        first = await client.responses.create(model="default", input="b" * 300, instructions="One.")
        second = await client.responses.create(
            model="default", input="And?", previous_response_id=first.id, instructions="Two."
        )
        assert miss(second) == ("cache_miss", "instructions_changed")


async def test_a_forgotten_conversation_is_named_as_the_cause() -> None:
    service = service_with(says("a" * 200))
    async with client_of(service) as client:
        first = await client.conversations.create(items=[{"role": "user", "content": "b" * 300}])
        made = await client.responses.create(model="default", input="And?", conversation=first.id)
        assert miss(made) == ("unavailable", "evicted")
        again = await client.responses.create(model="default", input="So?", conversation=first.id)
        assert miss(again) == ("cache_hit", None) and cached(again) > 450


def seen(tokens: int) -> Seen:
    return Seen("f", (), "", (), tuple(range(tokens)))


def test_memory_forgets_what_was_used_longest_ago() -> None:
    memory = Memory(max_tokens=25)
    memory.keep("a", seen(10))
    memory.keep("b", seen(10))
    assert memory.find("a") is not None
    memory.keep("c", seen(10))
    assert memory.find("b") is None
    assert memory.find("a") is not None and memory.find("c") is not None


def test_memory_counts_an_entry_once_however_often_it_is_kept() -> None:
    memory = Memory(max_tokens=25)
    memory.keep("a", seen(10))
    for _ in range(10):
        memory.keep("b", seen(10))
    assert memory.find("a") is not None


@pytest.mark.parametrize("id_", [None, "nothing"])
def test_memory_knows_nothing_of_others(id_: str | None) -> None:
    assert Memory().find(id_) is None
