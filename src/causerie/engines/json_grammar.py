"""From a JSON schema, in the small language of ``SamplingParams.json_schema``, to a grammar in xgrammar's EBNF.

xgrammar reads JSON schemas itself, but takes seconds and then hundreds of milliseconds a token for some small ones
(``maxLength``), ignores in silence what it does not know, and spells some numbers wrongly (``docs/log.md``). Here every
rule is short and its cost is known.

JSON is written on one line, with a space after each comma and colon, which is what models have seen most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

_BLOCK = 16
"""Characters of a string of limited length that one rule spells. The grammar's cost before the first token grows with
it; what a token costs shrinks, because tokens that go past a rule's end are looked at one by one each time."""

_CHARACTER = r'([^"\\\x00-\x1f\x7f] | "\\" escaped)'
_NUMBER = '("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})?'
# Half a surrogate pair is no character, so no escape spells one.
_COMMON = {
    "hex": "[0-9a-fA-F]",
    "escaped": r'["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex hex hex | [dD] [0-7] hex hex)',
    "string": rf'"\"" {_CHARACTER}* "\""',
    "integer": '"0" | "-"? [1-9] [0-9]{0,14}',
    "number": f'"-"? {_NUMBER}',
    "positive": _NUMBER,
    "boolean": '"true" | "false"',
    "null": '"null"',
    "anything": "string | number | boolean | null | list | record",
    "list": '"[" (anything (", " anything)*)? "]"',
    "record": r'"{" (string ": " anything (", " string ": " anything)*)? "}"',
}


def ebnf(schema: str) -> str:
    """The grammar, whose first rule is ``root``."""
    return _Grammar(json.loads(schema)).text()


class _Grammar:
    """Rules by name. A schema's rule is named where it is first needed, so that each is written once."""

    def __init__(self, schema: Schema) -> None:
        self._rules: dict[str, str] = {}
        definitions = schema.pop("$defs", {})
        for name, definition in definitions.items():
            self._rules[f"def{name}"] = self._expression(definition)
        self._root = self._expression(schema)

    def text(self) -> str:
        rules = {"root": self._root, **_COMMON, **self._rules}
        return "".join(f"{name} ::= {body}\n" for name, body in rules.items())

    def _rule(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _named(self, name: str, body: Callable[[], str]) -> str:
        if name not in self._rules:
            self._rules[name] = body()
        return name

    def _expression(self, schema: Schema) -> str:
        if "$ref" in schema:
            return "def" + str(schema["$ref"]).removeprefix("#/$defs/")
        if "anyOf" in schema:
            return self._rule(_either(map(self._expression, schema["anyOf"])))
        if "enum" in schema:
            return self._rule(_either(_literal(_json(value)) for value in schema["enum"]))
        match schema.get("type"):
            case None:
                return "anything"
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "string":
                return self._string(schema)
            case "integer":
                return self._integer(schema)
            case "number" if "minimum" in schema:
                return "positive"
            case kind:
                return str(kind)

    def _object(self, schema: Schema) -> str:
        if schema["additionalProperties"] is not False:
            value = self._expression(schema["additionalProperties"])
            member = self._rule(f'string ": " {value}')
            return self._rule(f'"{{" ({member} (", " {member})*)? "}}"')
        # ``after``: something was said before this property; ``first``: nothing was.
        after = first = '""'
        for name, value in reversed(schema["properties"].items()):
            member = f"{_literal(_json(name) + ': ')} {self._expression(value)}"
            following = "" if after == '""' else self._rule(after)
            here, alone = f'", " {member} {following}', f"{member} {following}"
            if name in schema["required"]:
                after, first = here, alone
            else:
                first = _either([alone, '""' if first == '""' else self._rule(first)])
                after = _either([here, following or '""'])
        return self._rule(f'"{{" {self._rule(first)} "}}"')

    def _array(self, schema: Schema) -> str:
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        first = [self._expression(one) for one in schema["prefixItems"]][:high]
        other = self._expression(schema["items"])
        rest = self._more(other, max(0, low - len(first)), None if high is None else high - len(first), bool(first))
        # From the last place to the first: each may be where the array ends, if it is long enough by then.
        for place in reversed(range(len(first))):
            here = f"{first[place]} {rest}" if place == 0 else f'", " {first[place]} {rest}'
            rest = self._rule(here if place < low else _either([here, '""']))
        return self._rule(f'"[" {rest} "]"')

    def _more(self, item: str, low: int, high: int | None, after: bool) -> str:
        """From ``low`` to ``high`` items; ``after``: something stands before them."""
        if high == 0:
            return '""'
        if after:
            return f'(", " {item}){_times(low, high)}'
        some = f'{item} (", " {item}){_times(max(0, low - 1), None if high is None else high - 1)}'
        return f"({some})" if low else f"({some})?"

    def _string(self, schema: Schema) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if not low and high is None:
            return "string"
        end = f"{_CHARACTER}*" if high is None else self._up_to(high - low)
        blocks = " ".join([self._block()] * (low // _BLOCK))
        return self._rule(rf'"\"" {blocks} {" ".join([_CHARACTER] * (low % _BLOCK))} {end} "\""')

    def _block(self) -> str:
        return self._named("block", lambda: " ".join([_CHARACTER] * _BLOCK))

    def _up_to(self, count: int) -> str:
        if count == 0:
            return '""'
        short = min(count, _BLOCK - 1)
        for length in range(1, short + 1):
            before = f"upto{length - 1}" if length > 1 else ""
            self._rules.setdefault(f"upto{length}", f'"" | {_CHARACTER} {before}')
        name = f"upto{short}"
        for length in range(count % _BLOCK or _BLOCK, count + 1, _BLOCK):
            if length >= _BLOCK:
                before = f"upto{length - _BLOCK}" if length > _BLOCK else ""
                name = f"upto{length}"
                self._rules.setdefault(name, f"upto{_BLOCK - 1} | {self._block()} {before}")
        return name

    def _integer(self, schema: Schema) -> str:
        if "minimum" not in schema:
            return "integer"
        low, high = schema["minimum"], schema["maximum"]
        positive = _natural(max(0, low), high) if high >= 0 else []
        negative = [f'"-" {one}' for one in _natural(max(1, -high), -low)] if low < 0 else []
        return self._rule(_either(positive + negative))


def _natural(low: int, high: int) -> list[str]:
    """The whole numbers from ``low``, at least 0, to ``high``, by how many digits they have."""
    ranges = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        least = 10 ** (digits - 1) if digits > 1 else 0
        ranges.append(_digits(str(max(low, least)), str(min(high, 10**digits - 1))))
    return ranges


def _digits(low: str, high: str) -> str:
    """The numbers from ``low`` to ``high``, which have the same number of digits."""
    if not low:
        return '""'
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return f"[{low[0]}-{high[0]}]" + (f" [0-9]{{{rest}}}" if rest else "")
    if low[0] == high[0]:
        return f'"{low[0]}" {_digits(low[1:], high[1:])}'
    ways = [f'"{low[0]}" {_digits(low[1:], "9" * rest)}', f'"{high[0]}" {_digits("0" * rest, high[1:])}']
    if int(high[0]) - int(low[0]) > 1:
        ways.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{rest}}}")
    return _either(ways)


def _either(ways: Iterable[str]) -> str:
    return f"({' | '.join(ways)})"


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _literal(text: str) -> str:
    """``text`` as EBNF quotes it; JSON's own text holds no control character."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
