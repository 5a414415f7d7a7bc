"""openai-python's own connection to the Responses API's WebSocket mode, on a server of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI
from openai.resources.responses.responses import AsyncResponsesConnection
from openai.types.responses.responses_server_event import ResponsesServerEvent
from pydantic import TypeAdapter

from causerie.chat.service import ChatService
from causerie.config import Settings
from tests.support.server import running_server
from tests.support.service import service_with, until_idle

EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
TERMINALS = ("response.completed", "response.incomplete", "response.failed")


@asynccontextmanager
async def serving(service: ChatService) -> AsyncIterator[tuple[str, AsyncOpenAI]]:
    """A server's URL, and a client of it. Nothing runs there at the end."""
    async with (
        asyncio.timeout(30),
        running_server(service) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        yield url, client
        await until_idle(service)


@asynccontextmanager
async def connected(service: ChatService) -> AsyncIterator[tuple[AsyncOpenAI, AsyncResponsesConnection]]:
    async with serving(service) as (_, client), client.responses.connect() as connection:
        yield client, connection


def recalling(settings: Settings | None = None, **engine: Any) -> ChatService:
    """Answers with all that it was told."""
    script = lambda prompt: [byte for byte in prompt if byte < 256]  # noqa: E731
    return service_with(script, settings=settings or Settings(engine="scripted"), **engine)


async def to_end(connection: AsyncResponsesConnection) -> list[Any]:
    """A response's events, each checked against the client's model."""
    events = []
    while True:
        event = await connection.recv()
        EVENT.validate_python(event.model_dump())
        events.append(event)
        if event.type in TERMINALS:
            return events


async def until_type(connection: AsyncResponsesConnection, type_: str) -> Any:
    while (event := await connection.recv()).type != type_:
        pass
    return event


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")
