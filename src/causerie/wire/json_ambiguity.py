"""How many ways of reading the same beginning of an answer a schema leaves open.

``anyOf`` of two objects is undecided until they differ, perhaps at their last property, and each token is then tried in
both. What that costs grows faster than their number (``docs/log.md``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_DIGITS = frozenset("0")
_BEGINS = {
    "object": frozenset("{"),
    "array": frozenset("["),
    "string": frozenset('"'),
    "integer": _DIGITS,
    "number": _DIGITS,
    "boolean": frozenset("tf"),
    "null": frozenset("n"),
}
_ANYTHING = frozenset('{["0tfn')


@dataclass(frozen=True, slots=True)
class _Shape:
    begins: frozenset[str]
    """The characters that it may begin with; any digit is 0."""
    width: int
    """The most ways that are open at once anywhere in it."""


def width(schema: Mapping[str, Any]) -> int:
    """The most ways that are open at once anywhere in an answer to ``schema``, in ``json_schema``'s small language."""
    definitions: dict[str, _Shape] = {}
    for name, definition in schema.get("$defs", {}).items():  # Each after those that it refers to.
        definitions[f"#/$defs/{name}"] = _shape(definition, definitions)
    return _shape(schema, definitions).width


def _shape(schema: Mapping[str, Any], definitions: Mapping[str, _Shape]) -> _Shape:
    if "$ref" in schema:
        return definitions[schema["$ref"]]
    if "enum" in schema:
        return _Shape(frozenset(map(_first, schema["enum"])), 1)
    if "anyOf" in schema:
        ways = [_shape(one, definitions) for one in schema["anyOf"]]
        begins = frozenset().union(*(way.begins for way in ways))
        return _Shape(begins, max(sum(way.width for way in ways if first in way.begins) for first in begins))
    inner = [_shape(one, definitions).width for one in _parts(schema)]
    return _Shape(_BEGINS.get(schema.get("type", ""), _ANYTHING), max([1, *inner]))


def _parts(schema: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield from schema.get("properties", {}).values()
    yield from schema.get("prefixItems", ())
    for name in ("items", "additionalProperties"):
        if isinstance(part := schema.get(name), Mapping):
            yield part


def _first(value: object) -> str:
    match value:
        case bool():
            return "t" if value else "f"
        case None:
            return "n"
        case str():
            return '"'
        case list():
            return "["
        case dict():
            return "{"
        case _:
            return "0"
