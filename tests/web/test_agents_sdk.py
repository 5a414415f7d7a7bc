"""The OpenAI Agents SDK over its own WebSocket model, unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from agents import Agent, ModelSettings, RunConfig, Runner
from agents.models.openai_responses import OpenAIResponsesWSModel
from openai import AsyncOpenAI

from causerie.config import Settings
from causerie.engines.scripted import echo
from tests.support.server import running_server
from tests.support.service import service_with

CONFIG = RunConfig(tracing_disabled=True)


@asynccontextmanager
async def agent(settings: ModelSettings | None = None) -> AsyncIterator[Agent[None]]:
    service = service_with(echo, settings=Settings(engine="scripted"))
    async with (
        asyncio.timeout(30),
        running_server(service) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        model = OpenAIResponsesWSModel(model="default", openai_client=client)
        try:
            yield Agent("Tester", instructions="Be kind.", model=model, model_settings=settings or ModelSettings())
        finally:
            await model.close()


@pytest.mark.parametrize("store", [True, False])
async def test_runs_go_on_by_the_last_responses_id(store: bool) -> None:
    async with agent(ModelSettings(store=store, temperature=0.5)) as tester:
        first = await Runner.run(tester, "Hello?", run_config=CONFIG)
        assert first.final_output.startswith("You said: Hello?")
        id_ = first.last_response_id
        second = await Runner.run(tester, "And now?", previous_response_id=id_, run_config=CONFIG)
        assert second.final_output.startswith("You said: And now?")
        whole = [*first.to_input_list(), {"role": "user", "content": "All of it?"}]
        third = await Runner.run(tester, whole, run_config=CONFIG)  # type: ignore[arg-type]
        assert third.final_output.startswith("You said: All of it?")


async def test_a_streamed_run_is_told_every_delta() -> None:
    async with agent() as tester:
        result = Runner.run_streamed(tester, "Hello?", run_config=CONFIG)
        said = ""
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                said += event.data.delta
        assert said == result.final_output and said.startswith("You said: Hello?")


async def test_an_error_reaches_the_caller_with_its_code() -> None:
    async with agent() as tester:
        with pytest.raises(Exception, match="previous_response_not_found"):
            await Runner.run(tester, "Hello?", previous_response_id="resp_none", run_config=CONFIG)
        assert (await Runner.run(tester, "Still?", run_config=CONFIG)).final_output.startswith("You said: Still?")
