"""Which schemas are taken, and what is written of them for the engines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from causerie.errors import InvalidRequest, UnsupportedParameter
from causerie.wire.formats import parse_format
from causerie.wire.json_schema import MAX_ALIKE, MAX_COUNT, MAX_DEPTH, MAX_INTEGER, MAX_SCHEMAS, read_schema

INTEGER = {"type": "integer"}


def read(schema: dict[str, Any]) -> Any:
    return json.loads(read_schema(schema, "schema"))


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = INTEGER
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    return schema


def alike(count: int) -> dict[str, Any]:
    return {"anyOf": [{"properties": {"a": {"type": "string", "maxLength": n}}} for n in range(count)]}


def chain(links: int) -> dict[str, Any]:
    """Each definition holds the next one twice, so that written out they would be 2 to the power of ``links``."""
    definitions: dict[str, Any] = {
        f"d{n}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(links)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{links}": INTEGER}}


def test_the_two_spellings_of_a_format_say_the_same() -> None:
    schema = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}
    said = {"name": "n", "schema": schema, "strict": True, "description": "d"}
    nested_form = parse_format({"type": "json_schema", "json_schema": said}, "response_format", flat=False)
    assert nested_form == parse_format({"type": "json_schema", **said}, "text.format", flat=True)
    assert parse_format({"type": "text"}, "response_format", flat=False) is None
    for flat in (True, False):
        any_object = parse_format({"type": "json_object"}, "x", flat=flat)
        assert any_object is not None and json.loads(any_object) == {"type": "object", "additionalProperties": {}}


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_object", "schema": {}}, "response_format.schema"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": []}}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": 1}},
            "response_format.json_schema.strict",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "x"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_format_that_is_none_is_refused_by_its_member(value: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_format(value, "response_format", flat=False)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"title": "t", "description": "d", "default": 3, "examples": [1]}, {}),
        ({"const": None}, {"enum": [None]}),
        ({"type": "string", "enum": ["a", 1]}, {"enum": ["a"]}),
        ({"type": ["integer", "number"]}, {"type": "number"}),
        (
            {"type": ["string", "null"], "maxLength": 3},
            {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        ),
        ({"allOf": [{"$ref": "#/definitions/a~1b"}], "definitions": {"a/b": INTEGER}}, {"$ref": "#/$defs/0"}),
        (
            {"properties": {"b": INTEGER, "a": True}, "required": ["a", "c"]},
            {
                "type": "object",
                "properties": {"b": INTEGER, "a": {}, "c": {}},
                "required": ["a", "c"],
                "additionalProperties": False,
            },
        ),
        ({"type": "object", "additionalProperties": INTEGER}, {"type": "object", "additionalProperties": INTEGER}),
        (
            {"type": "object", "additionalProperties": False},
            {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
        ),
        (
            {"type": "array", "prefixItems": [INTEGER], "items": False, "minItems": 1},
            {"type": "array", "prefixItems": [INTEGER], "items": {}, "minItems": 1, "maxItems": 1},
        ),
        ({"type": "integer", "exclusiveMinimum": 2, "maximum": 4.5}, {"type": "integer", "minimum": 3, "maximum": 4}),
        ({"type": "integer", "minimum": 2.5}, {"type": "integer", "minimum": 3, "maximum": MAX_INTEGER}),
        ({"type": "number", "minimum": 0}, {"type": "number", "minimum": 0}),
    ],
)
def test_schema_is_written_anew_in_fewer_words(schema: dict[str, Any], written: dict[str, Any]) -> None:
    result = read(schema)
    result.pop("$defs", None)
    assert result == written


def test_properties_keep_their_order() -> None:
    assert list(read({"properties": {"z": INTEGER, "a": INTEGER}})["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "#"}, "contains itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}, "contains itself"),
        ({"$ref": "https://example.com/a.json"}, "only references"),
        ({"$ref": "#/properties/a"}, "only references"),
        ({"$ref": 3}, "only references"),
        ({"type": "string", "pattern": "(a+)+$"}, "'pattern' is not supported"),
        ({"type": "string", "format": "email"}, "'format' is not supported"),
        ({"oneOf": [INTEGER]}, "'oneOf' is not supported"),
        ({"allOf": [INTEGER, INTEGER]}, "only one schema"),
        ({"not": {}}, "'not' is not supported"),
        ({"type": "integer", "multipleOf": 2}, "'multipleOf' is not supported"),
        ({"type": "number", "maximum": 1}, "only 'minimum': 0"),
        ({"anyOf": [INTEGER], "type": "integer"}, "'type' beside 'anyOf'"),
        ({"type": "array", "items": {"uniqueItems": True}}, "at /items"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedParameter, match=says) as refused:
        read(schema)
    assert refused.value.param == "schema"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"},
        {"type": []},
        {"type": ["string", 3]},
        {"$ref": "#/$defs/b", "$defs": {"a": {}}},
        {"$defs": []},
        {"enum": []},
        {"enum": 3},
        {"type": "string", "enum": [1]},
        {"anyOf": []},
        {"properties": []},
        {"properties": {"a": 3}},
        {"properties": {"a": False}},
        {"required": "a"},
        {"properties": {}, "required": ["a"], "additionalProperties": False},
        {"items": 3},
        {"prefixItems": {}},
        {"minItems": 3, "maxItems": 2},
        {"minItems": -1},
        {"maxItems": MAX_COUNT + 1},
        {"maxLength": True},
        {"minLength": 2, "maxLength": 1},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "integer", "minimum": 1.2, "maximum": 1.8},
        {"type": "integer", "minimum": "1"},
        {"type": "integer", "minimum": 10**15},
        {"type": "string", "minimum": 1},
        alike(MAX_ALIKE + 1),
        {
            "type": "array",
            "items": {"anyOf": [alike(MAX_ALIKE // 2 + 1), {"$ref": "#/$defs/a"}]},
            "$defs": {"a": alike(MAX_ALIKE // 2)},
        },
        nested(MAX_DEPTH + 1),
        chain(MAX_DEPTH),
        {"anyOf": [INTEGER] * MAX_SCHEMAS},
        {"enum": list(range(1001))},
        {"enum": ["x" * 20_000]},
    ],
)
def test_impossible_and_oversized_schemas_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(schema)
    assert refused.value.param == "schema" and len(str(refused.value)) < 600


def test_alternatives_that_begin_alike_are_counted_where_they_do() -> None:
    assert read(alike(MAX_ALIKE))
    assert read({"anyOf": [alike(MAX_ALIKE), *[{"const": value} for value in ("a", 1, None, True, False, [1])]]})
    assert read({"properties": {name: alike(MAX_ALIKE) for name in "abc"}})


def test_depth_is_counted_through_references_and_not_written_out() -> None:
    assert read(nested(MAX_DEPTH))
    assert len(read_schema(chain(MAX_DEPTH // 2 - 1), "schema")) < 6_000
