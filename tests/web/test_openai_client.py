"""The OpenAI routes as openai-python sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.engines.scripted import OutOfBlocks
from tests.support.server import running_server
from tests.support.service import endless, says, service_with, until_idle


@asynccontextmanager
async def client_of(service: ChatService) -> AsyncIterator[AsyncOpenAI]:
    async with running_server(service) as url, AsyncOpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as client:
        yield client


HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


async def test_whole_answer() -> None:
    async with client_of(service_with(says("Hé!"))) as client:
        answer = await client.chat.completions.create(model="default", messages=HELLO)
        assert answer.choices[0].message.content == "Hé!"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None and answer.usage.completion_tokens == 5


async def test_streamed_answer_with_usage() -> None:
    async with client_of(service_with(says("Hé!"), step_seconds=0.005)) as client:
        stream = await client.chat.completions.create(
            model="scripted",
            messages=HELLO,
            stream=True,
            n=2,
            stream_options={"include_usage": True},
        )
        texts = ["", ""]
        reasons: dict[int, str] = {}
        ids = set()
        async for chunk in stream:
            ids.add((chunk.id, chunk.created))
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
            usage = chunk.usage
        assert texts == ["Hé!", "Hé!"] and reasons == {0: "stop", 1: "stop"} and len(ids) == 1
        assert usage is not None and usage.completion_tokens == 10


async def test_length_limit_is_told() -> None:
    async with client_of(service_with(endless)) as client:
        answer = await client.chat.completions.create(model="default", messages=HELLO, max_tokens=3)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("aaa", "length")


async def test_stop_string_is_never_sent() -> None:
    async with client_of(service_with(says("abc<end>def"))) as client:
        stream = await client.chat.completions.create(
            model="default",
            messages=HELLO,
            stream=True,
            stop=["<end>"],
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == "abc"


async def test_logprobs_in_both_shapes() -> None:
    async with client_of(service_with(says("ab"))) as client:
        chat = await client.chat.completions.create(model="default", messages=HELLO, logprobs=True)
        assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
        assert [entry.token for entry in chat.choices[0].logprobs.content][:2] == ["a", "b"]
        text = await client.completions.create(model="default", prompt="x", logprobs=0)
        assert text.choices[0].logprobs is not None and text.choices[0].logprobs.tokens is not None
        assert text.choices[0].logprobs.tokens[:2] == ["a", "b"]


async def test_logprobs_are_those_of_all_that_was_generated() -> None:
    async with client_of(service_with(says("abcd"))) as client:
        stopped = (await client.completions.create(model="default", prompt="x", logprobs=0, stop="bc")).choices[0]
        assert stopped.text == "a"
        assert stopped.logprobs is not None and stopped.logprobs.tokens == ["a", "b", "c"]


async def test_text_completion_streams() -> None:
    async with client_of(service_with(says("abc"))) as client:
        stream = await client.completions.create(model="default", prompt="x", stream=True)
        choices = [chunk.choices[0] async for chunk in stream]
        assert "".join(choice.text for choice in choices) == "abc"
        assert choices[-1].finish_reason == "stop"


async def test_errors_arrive_as_the_clients_own() -> None:
    async with client_of(service_with(says("a"))) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="gpt-9", messages=HELLO)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="default",
                messages=HELLO,
                response_format={"type": "json_object"},
            )
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "response_format")


async def test_prompt_over_the_context_window_says_both_numbers() -> None:
    async with client_of(service_with(says("a"), context_window=64)) as client:
        with pytest.raises(openai.BadRequestError, match=r"64 tokens.*prompt has \d+") as caught:
            await client.completions.create(model="default", prompt="x" * 100)
        assert caught.value.code == "context_length_exceeded"


async def test_failure_in_a_stream_raises() -> None:
    def script(prompt: object):  # type: ignore[no-untyped-def]
        yield from b"abc"
        raise OutOfBlocks

    async with client_of(service_with(script)) as client:
        stream = await client.chat.completions.create(model="default", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="KV-cache"):
            async for _ in stream:
                pass


async def test_overload_arrives_with_its_retry_after() -> None:
    service = service_with(endless, settings=Settings(max_batch_size=1, max_waiting=0), step_seconds=0.005)
    async with client_of(service) as client:
        stream = await client.chat.completions.create(model="default", messages=HELLO, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="default", messages=HELLO)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        await stream.close()
        await until_idle(service)


async def test_model_is_listed() -> None:
    async with client_of(service_with(says("a"))) as client:
        assert [model.id async for model in client.models.list()] == ["scripted"]
        assert (await client.models.retrieve("scripted")).id == "scripted"
