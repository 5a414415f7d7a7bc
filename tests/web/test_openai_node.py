"""The OpenAI API through openai's client for Node, over real sockets; ``tests/node/scenarios.mjs`` is what it does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from causerie.chat.service import ChatService
from tests.support.server import running_server
from tests.support.service import endless, says, service_with, until_idle

NODE = Path(__file__).parents[1] / "node"
ANSWER = "Ein Löwe 🦁 läuft durch den Wald."


async def node(service: ChatService, scenario: str) -> Any:
    """What the scenario printed."""
    async with asyncio.timeout(60), running_server(service) as url:
        process = await asyncio.create_subprocess_exec(
            "node", "scenarios.mjs", url, scenario, cwd=NODE, stdout=asyncio.subprocess.PIPE
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        await until_idle(service)
        return json.loads(output)


def texts(events: list[Any]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def recalling() -> ChatService:
    """Answers with all that it was told."""
    return service_with(lambda prompt: [byte for byte in prompt if byte < 256])


async def test_an_answer_comes_whole_and_is_found_again() -> None:
    got = await node(service_with(says(ANSWER)), "whole")
    made = got["made"]
    assert (made["status"], made["output_text"]) == ("completed", ANSWER)
    assert made["metadata"] == {"a": "b"} and made["instructions"] == "Be kind."
    assert got["found"] == made
    assert [item["content"][0]["text"] for item in got["items"]] == ["Hi"]
    assert (got["deleted"]["class"], got["deleted"]["code"]) == ("NotFoundError", "response_not_found")


async def test_a_stream_has_every_event_in_order() -> None:
    got = await node(service_with(says(ANSWER)), "streamed")
    events = got["events"]
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
    assert texts(events) == got["accumulated"] == ANSWER


async def test_every_number_gives_exactly_the_rest() -> None:
    got = await node(service_with(says(ANSWER), ids_per_step=6), "resumed")
    whole = got["whole"]
    assert texts(got["had"]) == texts(whole) == ANSWER
    assert got["rests"] == [whole[index + 1 :] for index in range(len(whole))]


async def test_what_was_said_before_is_known_and_refusals_have_their_classes() -> None:
    got = await node(recalling(), "continued")
    assert "My name is Ada." in got["second"] and "I am Ada." in got["answer"]
    assert got["roles"] == ["user", "user", "assistant"]
    assert got["deleted"]["status"] == 404
    unknown = {"class": "BadRequestError", "status": 400, "code": "previous_response_not_found"}
    assert got["unknown"] == {**unknown, "param": "previous_response_id"}
    assert (got["unsupported"]["status"], got["unsupported"]["code"]) == (400, "unsupported_parameter")


async def test_a_running_answer_can_be_cancelled_and_keeps_what_it_said() -> None:
    got = await node(service_with(endless, step_seconds=0.002), "cancelled")
    assert got["cancelled"]["status"] == "cancelled"
    assert set(got["cancelled"]["output"][0]["content"][0]["text"]) == {"a"}
    assert got["last"]["type"] == "response.incomplete"
    assert got["last"]["response"]["status"] == "cancelled"
    assert got["last"]["response"]["output"] == got["cancelled"]["output"]


async def test_chat_completions_are_streamed() -> None:
    got = await node(service_with(says(ANSWER)), "chat")
    assert (got["content"], got["reason"]) == (ANSWER, "stop")
    assert got["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1
