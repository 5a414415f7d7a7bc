"""Which JSON an answer can be held to.

JSON Schema says far more than a grammar can hold a model to. What is taken here is exactly what is then held to;
everything else is refused by its name. A schema that was taken is written anew in a smaller language (see ``_Reader``),
which is all that the engines have to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import orjson

from causerie.errors import InvalidRequest, UnsupportedParameter
from causerie.wire.fields import shown
from causerie.wire.json_ambiguity import width

MAX_SCHEMAS = 1_000
"""Schemas inside a schema, itself included."""
MAX_DEPTH = 32
"""Levels of schemas inside each other, references followed."""
MAX_CHARACTERS = 20_000
"""Of all names of properties and all values of enumerations together."""
MAX_VALUES = 1_000
"""Of all enumerations together."""
MAX_COUNT = 1_000
"""Largest ``minItems``, ``maxItems``, ``minLength`` and ``maxLength``."""
MAX_ALIKE = 10
"""Alternatives that a part of an answer may be a beginning of at the same time."""
MAX_INTEGER = 10**15 - 1
"""Whole numbers have at most this many digits, so that every reader of JSON keeps them exactly."""

Schema: TypeAlias = dict[str, Any]

_ANNOTATIONS = frozenset(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$comment", "$schema", "$id", "discriminator"}
)
_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
_TYPES = {dict: "object", list: "array", str: "string", int: "integer", float: "number", bool: "boolean"}
_DEFINITIONS = ("$defs", "definitions")


def read_schema(schema: Mapping[str, Any], param: str) -> str:
    """``schema`` in the engines' small language, as JSON text. Its time is bounded.

    Raises InvalidRequest or UnsupportedParameter with ``param``, which is what the client calls the schema.
    """
    reader = _Reader(schema, param)
    return orjson.dumps(reader.root()).decode()


class _Reader:
    """Writes a schema anew. A node of the result is one of

    ``{}``, any value; ``{"enum": […]}``; ``{"anyOf": […]}``; ``{"$ref": "#/$defs/…"}``; or ``{"type": …}`` with

    * object: ``properties`` and ``required``, or ``additionalProperties`` for one whose members have any names
    * array: ``items`` and ``prefixItems``, ``minItems``, ``maxItems``
    * string: ``minLength``, ``maxLength``
    * integer: ``minimum``, ``maximum``; number: ``minimum``, which is 0

    with ``$defs`` at the root. It accepts nothing that the original refuses, though it may accept less: members that
    were not named are not invented.
    """

    def __init__(self, schema: Mapping[str, Any], param: str) -> None:
        self._source = schema
        self._param = param
        self._schemas = self._characters = self._values = 0
        self._definitions: dict[str, Schema] = {}
        self._heights: dict[str, int] = {}
        self._numbers: dict[str, str] = {}
        self._open: list[str] = []
        self._deepest = 0

    def root(self) -> Schema:
        source = {name: value for name, value in self._source.items() if name not in _DEFINITIONS}
        for name in _DEFINITIONS:
            if not isinstance(self._source.get(name, {}), dict):
                self._refuse(name, "must be an object of schemas.")
        result = self._read(source, "", 1)
        result |= {"$defs": self._definitions} if self._definitions else {}
        if width(result) > MAX_ALIKE:
            self._refuse("", f"more than {MAX_ALIKE} alternatives of 'anyOf', with those inside them, begin alike.")
        return result

    def _refuse(self, path: str, reason: str, *, unsupported: bool = False) -> NoReturn:
        error = UnsupportedParameter if unsupported else InvalidRequest
        path = path if len(path) <= 200 else path[:200] + "…"
        raise error(f"'{self._param}'{f' at {path}' if path else ''}: {reason}", param=self._param)

    def _read(self, schema: object, path: str, depth: int) -> Schema:
        self._deepest = max(self._deepest, depth)
        self._schemas += 1
        if depth > MAX_DEPTH or self._schemas > MAX_SCHEMAS:
            self._refuse(path, f"a schema may hold at most {MAX_SCHEMAS} schemas, {MAX_DEPTH} inside each other.")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            self._refuse(path, f"a schema must be an object, not {shown(schema)}.")
        said = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
        for name, read in self._whole().items():
            if name in said:
                value = said.pop(name)
                self._alone(said, name, path, but=("type",) if name in ("enum", "const") else ())
                return read(value, f"{path}/{name}", depth, said)
        return self._typed(said, path, depth)

    def _whole(self) -> Mapping[str, Callable[[Any, str, int, Schema], Schema]]:
        """Keywords that say all that there is to say."""
        return {
            "$ref": self._reference,
            "anyOf": self._any_of,
            "allOf": self._all_of,
            "enum": self._enum,
            "const": lambda value, path, depth, said: self._enum([value], path, depth, said),
        }

    def _alone(self, said: Schema, name: str, path: str, but: Sequence[str]) -> None:
        for other in said:
            if other not in but:
                self._refuse(path, f"{shown(other)} beside {name!r} is not supported.", unsupported=True)

    def _reference(self, value: Any, path: str, depth: int, said: Schema) -> Schema:
        parts = value.split("/") if isinstance(value, str) else []
        if value == "#":
            self._refuse(path, "a schema that contains itself is not supported.", unsupported=True)
        if len(parts) != 3 or parts[0] != "#" or parts[1] not in _DEFINITIONS:
            self._refuse(
                path, f"only references as '#/$defs/name' are supported, not {shown(value)}.", unsupported=True
            )
        key = parts[2].replace("~1", "/").replace("~0", "~")
        source = self._source.get(parts[1], {})
        if key not in source:
            self._refuse(path, f"there is no {shown(value)}.")
        if value in self._open:
            self._refuse(path, "a schema that contains itself is not supported.", unsupported=True)
        if value not in self._heights:
            self._define(value, source[key], depth)
        if depth + self._heights[value] > MAX_DEPTH:
            self._refuse(path, f"schemas may be at most {MAX_DEPTH} levels inside each other.")
        self._deepest = max(self._deepest, depth + self._heights[value])
        return {"$ref": f"#/$defs/{self._numbers[value]}"}

    def _define(self, reference: str, source: object, depth: int) -> None:
        outer, self._deepest = self._deepest, depth
        self._open.append(reference)
        result = self._read(source, reference, depth + 1)
        self._open.pop()
        self._heights[reference] = self._deepest - depth
        self._numbers[reference] = str(len(self._numbers))
        self._definitions[self._numbers[reference]] = result
        self._deepest = max(outer, self._deepest)

    def _any_of(self, value: Any, path: str, depth: int, said: Schema) -> Schema:
        if not isinstance(value, list) or not value:
            self._refuse(path, "must be an array of schemas that is not empty.")
        return {"anyOf": [self._read(one, f"{path}/{index}", depth + 1) for index, one in enumerate(value)]}

    def _all_of(self, value: Any, path: str, depth: int, said: Schema) -> Schema:
        if not isinstance(value, list) or len(value) != 1:
            self._refuse(path, "only one schema is supported in it.", unsupported=True)
        return self._read(value[0], f"{path}/0", depth + 1)

    def _enum(self, value: Any, path: str, depth: int, said: Schema) -> Schema:
        if not isinstance(value, list) or not value:
            self._refuse(path, "must be an array of values that is not empty.")
        kinds = self._types(said, path)
        allowed = [one for one in value if not kinds or _type(one) in kinds or (type(one) is int and "number" in kinds)]
        if not allowed:
            self._refuse(path, f"none of its values is of type {' or '.join(kinds)}.")
        self._values += len(allowed)
        self._count_characters(sum(len(orjson.dumps(one)) for one in allowed), path)
        if self._values > MAX_VALUES:
            self._refuse(path, f"all enumerations together may have at most {MAX_VALUES} values.")
        return {"enum": allowed}

    def _count_characters(self, count: int, path: str) -> None:
        self._characters += count
        if self._characters > MAX_CHARACTERS:
            self._refuse(path, f"names and values together may have at most {MAX_CHARACTERS} characters.")

    def _types(self, said: Schema, path: str) -> list[str]:
        value = said.get("type", [])
        kinds = [value] if isinstance(value, str) else value
        if not isinstance(kinds, list) or ("type" in said and not kinds):
            self._refuse(path, "'type' must be a type's name or an array of such names.")
        for one in kinds:
            if not isinstance(one, str) or one not in _OF_TYPE:
                self._refuse(path, f"'type' must be one of {', '.join(_OF_TYPE)}, not {shown(one)}.")
        return list(dict.fromkeys(kinds))

    def _typed(self, said: Schema, path: str, depth: int) -> Schema:
        kinds = self._types(said, path)
        said.pop("type", None)
        known = {name for names in _OF_TYPE.values() for name in names}
        for name in said:
            if name not in known:
                self._refuse(path, f"{shown(name)} is not supported.", unsupported=True)
        if not kinds:  # What a keyword speaks of is what is meant, and no less valid than anything else.
            kinds = [type_ for type_, names in _OF_TYPE.items() if said.keys() & set(names)]
            kinds = [type_ for type_ in kinds if type_ != "integer"]
        if "number" in kinds:
            kinds = [type_ for type_ in kinds if type_ != "integer"]
        for name in said:
            if not any(name in _OF_TYPE[type_] for type_ in kinds):
                self._refuse(path, f"{shown(name)} says nothing about {' or '.join(kinds)}.")
        read = {"object": self._object, "array": self._array, "string": self._string}
        read |= {"integer": self._integer, "number": self._number}
        results = [{"type": type_, **(read[type_](said, path, depth) if type_ in read else {})} for type_ in kinds]
        return {"anyOf": results} if len(results) > 1 else results[0] if results else {}

    def _object(self, said: Schema, path: str, depth: int) -> Schema:
        properties, required = said.get("properties", {}), said.get("required", [])
        if not isinstance(properties, dict):
            self._refuse(f"{path}/properties", "must be an object of schemas.")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._refuse(f"{path}/required", "must be an array of names.")
        others: Schema | None = {}
        if "additionalProperties" in said:  # Read even where it is not used: a schema is refused for what is in it.
            source = said["additionalProperties"]
            others = None if source is False else self._read(source, f"{path}/additionalProperties", depth + 1)
        unnamed = [name for name in required if name not in properties]
        if unnamed and others is None:
            self._refuse(f"{path}/required", f"{shown(unnamed[0])} is not among the properties.")
        if others is not None and not properties and not unnamed:
            return {"additionalProperties": others}
        self._count_characters(sum(map(len, [*properties, *unnamed])), path)
        read = {name: self._read(schema, f"{path}/properties/{name}", depth + 1) for name, schema in properties.items()}
        read |= dict.fromkeys(unnamed, others)
        return {"properties": read, "required": list(dict.fromkeys(required)), "additionalProperties": False}

    def _array(self, said: Schema, path: str, depth: int) -> Schema:
        low, high = self._counts(said, "minItems", "maxItems", path)
        first = said.get("prefixItems", [])
        if not isinstance(first, list):
            self._refuse(f"{path}/prefixItems", "must be an array of schemas.")
        read = [self._read(one, f"{path}/prefixItems/{index}", depth + 1) for index, one in enumerate(first)]
        rest = said.get("items", True)
        if rest is False:
            high = min(len(read), MAX_COUNT if high is None else high)
        if high is not None and low > high:
            self._refuse(path, f"'minItems' is {low}, but there are at most {high}.")
        others = {} if rest is False else self._read(rest, f"{path}/items", depth + 1)
        return {"prefixItems": read, "items": others, **_limits("Items", low, high)}

    def _string(self, said: Schema, path: str, depth: int) -> Schema:
        low, high = self._counts(said, "minLength", "maxLength", path)
        if high is not None and low > high:
            self._refuse(path, f"'minLength' is {low}, but 'maxLength' is {high}.")
        return _limits("Length", low, high)

    def _counts(self, said: Schema, least: str, most: str, path: str) -> tuple[int, int | None]:
        for name in (least, most):
            value = said.get(name, 0)
            if type(value) is not int or not 0 <= value <= MAX_COUNT:
                self._refuse(f"{path}/{name}", f"must be an integer from 0 to {MAX_COUNT}, not {shown(value)}.")
        return said.get(least, 0), said.get(most)

    def _integer(self, said: Schema, path: str, depth: int) -> Schema:
        limits = {name: self._limit(said, name, path) for name in _OF_TYPE["integer"] if name in said}
        lows = [-(-value // 1) for name, value in limits.items() if name == "minimum"]
        lows += [value // 1 + 1 for name, value in limits.items() if name == "exclusiveMinimum"]
        highs = [value // 1 for name, value in limits.items() if name == "maximum"]
        highs += [-(-value // 1) - 1 for name, value in limits.items() if name == "exclusiveMaximum"]
        low, high = int(max([-MAX_INTEGER, *lows])), int(min([MAX_INTEGER, *highs]))
        if low > high:
            self._refuse(path, "there is no integer within its limits.")
        return {"minimum": low, "maximum": high} if limits else {}

    def _number(self, said: Schema, path: str, depth: int) -> Schema:
        for name in _OF_TYPE["number"]:
            if name in said and (name != "minimum" or self._limit(said, name, path) != 0):
                reason = f"of the limits of a number only 'minimum': 0 is supported, not {name!r}: {shown(said[name])}."
                self._refuse(path, reason, unsupported=True)
        return {"minimum": 0} if "minimum" in said else {}

    def _limit(self, said: Schema, name: str, path: str) -> int | float:
        value = said[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_INTEGER:
            self._refuse(f"{path}/{name}", f"must be a number of at most 15 digits, not {shown(value)}.")
        return value


def _limits(of: str, low: int, high: int | None) -> Schema:
    return ({f"min{of}": low} if low else {}) | ({} if high is None else {f"max{of}": high})


def _type(value: object) -> str:
    return "null" if value is None else _TYPES[type(value)]
