"""``response_format`` and its kin: what an answer has to be."""

from __future__ import annotations

from causerie.errors import InvalidRequest
from causerie.wire.fields import Fields, kind
from causerie.wire.json_schema import read_schema

MAX_NAME = 64
ANY_OBJECT = '{"type":"object","additionalProperties":{}}'
"""What ``json_object`` stands for."""

_SCHEMA = ("name", "description", "schema", "strict")


def parse_format(value: object, param: str, *, flat: bool) -> str | None:
    """The JSON schema that a format object asks for, in the engines' small language, or None for plain text.

    ``flat`` is the Responses API's spelling, in which the schema's members stand beside ``type``; in chat completions
    they are in an object of their own. Raises InvalidRequest or UnsupportedParameter that names the member at fault.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{param}' must be an object, not {kind(value)}.", param=param)
    fields = Fields(value, param + ".")
    wanted = fields.take("type")
    schema = None
    if wanted == "json_object":
        schema = ANY_OBJECT
    elif wanted == "json_schema":
        schema = _take_schema(fields, param) if flat else _take_nested(fields, param)
    elif wanted != "text":
        fields.refuse("type", "'text', 'json_object' or 'json_schema'", wanted)
    fields.finish(("type", *_SCHEMA) if flat else ("type", "json_schema"))
    return schema


def _take_nested(fields: Fields, param: str) -> str:
    value = fields.take("json_schema")
    path = f"{param}.json_schema"
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{path}' must be an object, not {kind(value)}.", param=path)
    inner = Fields(value, path + ".")
    schema = _take_schema(inner, path)
    inner.finish(_SCHEMA)
    return schema


def _take_schema(fields: Fields, param: str) -> str:
    if not fields.text("name", MAX_NAME):
        raise InvalidRequest(f"'{param}.name' is missing.", param=f"{param}.name")
    fields.take("description")
    fields.boolean("strict")  # A schema is held to, whatever this says.
    schema = fields.take("schema")
    if not isinstance(schema, dict):
        raise InvalidRequest(f"'{param}.schema' must be an object, not {kind(schema)}.", param=f"{param}.schema")
    return read_schema(schema, f"{param}.schema")
