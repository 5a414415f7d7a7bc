"""Answers that are held to a JSON schema, of the real default model, as openai-python sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any

import openai
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from causerie.chat.build import build_service
from causerie.config import Settings
from tests.support.server import running_server

pytestmark = pytest.mark.model

PERSON: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Describe a person as JSON."}]
MANY = 400
"""Tokens, more than any of the answers needs."""


def record(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMAS: dict[str, Any] = {
    "scalars": record(
        color={"enum": ["red", "blue", 3, None]},
        age={"type": "integer", "minimum": 18, "maximum": 120},
        debt={"type": "integer", "exclusiveMaximum": -7, "minimum": -1234},
        weight={"type": "number", "minimum": 0},
        ok={"type": "boolean"},
        nothing={"type": "null"},
    ),
    "optional": {"type": "object", "properties": {name: {"type": "boolean"} for name in "abcd"}, "required": ["c"]},
    "arrays": record(
        three={"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 3, "maxItems": 3},
        few={"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
        pair={"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    ),
    "definitions": {
        "$defs": {
            "point": record(x={"type": "integer", "minimum": 0, "maximum": 9}, y={"$ref": "#/$defs/axis"}),
            "axis": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        **record(start={"$ref": "#/$defs/point"}, stop={"$ref": "#/$defs/point"}),
    },
    "strings": record(
        short={"type": "string", "minLength": 3, "maxLength": 9},
        long={"type": "string", "minLength": 20, "maxLength": 40},
        maybe={"type": ["string", "null"], "maxLength": 17},
    ),
    "letters before digits": record(**{"Müde Größe": {"enum": ["é1 çb", "ße"]}, "½a": {"const": "\x7fF"}}),
    "names": record(**{'naïve "quoted" \\ \n 😀': {"enum": ['日本\t"x"', "😀"]}}),
}


def format_of(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[AsyncOpenAI]:
    service = build_service(Settings(kv_cache_gib=0.25, max_batch_size=16))
    async with running_server(service) as url, AsyncOpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as client:
        yield client


module_loop = pytest.mark.asyncio(loop_scope="module")


@module_loop
@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("temperature", [0.0, 1.7])
async def test_whole_answer_is_what_the_schema_says(client: AsyncOpenAI, name: str, temperature: float) -> None:
    schema = SCHEMAS[name]
    answer = await client.chat.completions.create(
        model="default",
        messages=PERSON,
        response_format=format_of(schema),
        temperature=temperature,
        seed=4,
        max_tokens=MANY,
        n=2,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        Draft202012Validator(schema).validate(json.loads(choice.message.content or ""))


@module_loop
async def test_deltas_joined_are_the_whole_answer(client: AsyncOpenAI) -> None:
    wanted: Any = {
        "model": "default",
        "messages": PERSON,
        "response_format": format_of(SCHEMAS["definitions"]),
        "temperature": 0,
        "max_tokens": MANY,
    }
    whole = await client.chat.completions.create(**wanted)
    stream = await client.chat.completions.create(**wanted, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


@module_loop
async def test_json_object_is_an_object(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="default",
        messages=[
            {"role": "user", "content": "Give me a JSON object with the keys a and b, both numbers, nothing else."}
        ],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=MANY,
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Pet(BaseModel):
    name: str = Field(max_length=12)
    legs: int = Field(ge=0, le=8)


class Owner(BaseModel):
    age: int = Field(gt=0, lt=130)
    favourite: Color
    pets: list[Pet] = Field(min_length=1, max_length=2)


@module_loop
async def test_pydantic_models_are_parsed_by_openai_python(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="default", messages=PERSON, response_format=Owner, temperature=0, max_tokens=MANY
    )
    owner = answer.choices[0].message.parsed
    assert isinstance(owner, Owner) and owner.pets


@module_loop
async def test_answer_cut_by_the_limit_says_so(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="default", messages=PERSON, response_format=format_of(SCHEMAS["scalars"]), max_tokens=5
    )
    assert answer.choices[0].finish_reason == "length"
    assert (answer.choices[0].message.content or "").startswith('{"color')


@module_loop
async def test_stop_string_ends_it_before_the_schema_does(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="default", messages=PERSON, response_format=format_of(SCHEMAS["scalars"]), stop=['"age"'], max_tokens=MANY
    )
    text = answer.choices[0].message.content or ""
    assert answer.choices[0].finish_reason == "stop" and text.startswith('{"color": ') and text.endswith(", ")


@module_loop
async def test_log_probabilities_come_beside_a_schema(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="default",
        messages=PERSON,
        response_format=format_of(SCHEMAS["scalars"]),
        logprobs=True,
        temperature=1.0,
        seed=1,
        max_tokens=MANY,
    )
    choice = answer.choices[0]
    Draft202012Validator(SCHEMAS["scalars"]).validate(json.loads(choice.message.content or ""))
    assert choice.logprobs is not None and choice.logprobs.content
    assert "".join(entry.token for entry in choice.logprobs.content).startswith('{"')


@module_loop
async def test_neighbours_of_a_schema_say_what_they_say_beside_others(client: AsyncOpenAI) -> None:
    """The batch has the same shape both times, so that arithmetic is the same."""

    async def batch(format_: Any) -> list[str]:
        async def one(index: int) -> str:
            answer = await client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": f"Tell me a story of {index} stars."}],
                temperature=0,
                max_tokens=24,
                **({"response_format": format_} if index == 2 and format_ else {}),
            )
            return answer.choices[0].message.content or ""

        return await asyncio.gather(*(one(index) for index in range(4)))

    plain = await batch(None)
    held = await batch(format_of({"type": "array", "items": {"type": "integer"}, "minItems": 100}))
    assert held[2].startswith("[") and not plain[2].startswith("[")
    assert [held[index] for index in (0, 1, 3)] == [plain[index] for index in (0, 1, 3)]


HOSTILE: dict[str, Any] = {
    "recursive": {"$ref": "#"},
    "a tree": {"$defs": {"n": record(kids={"type": "array", "items": {"$ref": "#/$defs/n"}})}, "$ref": "#/$defs/n"},
    "a pattern": {"type": "string", "pattern": "(a+)+$"},
    "huge": record(**{f"p{index}": {"type": "string"} for index in range(5000)}),
    "an external reference": {"$ref": "http://127.0.0.1:1/schema.json"},
    "a keyword nobody knows": {"type": "string", "colour": "red"},
    "no possible value": {"type": "integer", "minimum": 3, "maximum": 2},
}


@module_loop
@pytest.mark.parametrize("name", HOSTILE)
async def test_schema_that_cannot_be_held_to_is_refused_and_the_engine_lives(client: AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model="default", messages=PERSON, response_format=format_of(HOSTILE[name]), max_tokens=5
        )
    assert str(refused.value.param).startswith("response_format.json_schema.schema")
    answer = await client.chat.completions.create(model="default", messages=PERSON, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
