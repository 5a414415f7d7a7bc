"""From a JSON schema, in the small language of ``SamplingParams.json_schema``, to a grammar in xgrammar's EBNF.

xgrammar reads JSON schemas itself, but takes seconds and then hundreds of milliseconds a token for some small ones
(``maxLength``), ignores in silence what it does not know, and spells some numbers wrongly (``docs/log.md``). Here every
rule is short and its cost is known, and wherever it can be, the next character alone says which way to go: xgrammar
merges ways that begin alike, and some of them wrongly.

JSON is written on one line, with a space after each comma and colon, which is what models have seen most.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby, takewhile
from typing import Any, TypeAlias

from causerie.engines.ebnf import literal

Schema: TypeAlias = dict[str, Any]

_BLOCK = 16
"""Characters of a string of limited length that one rule spells. The grammar's cost before the first token grows with
it; what a token costs shrinks, because tokens that go past a rule's end are looked at one by one each time."""

_MOST_DIGITS = 15
_Spans: TypeAlias = tuple[tuple[str, str], ...]
"""Numbers as text, from one to another with as many digits."""
_END = ("", "")


def _character(then: str) -> str:
    """A character of a string, and what follows it: in one rule, so that a token may go past the character."""
    return rf'[^"\\\x00-\x1f\x7f] {then} | "\\" escaped {then}'


# Half a surrogate pair is no character, so no escape spells one.
_COMMON = {
    "hex": "[0-9a-fA-F]",
    "escaped": r'["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex hex hex | [dD] [0-7] hex hex)',
    "string": r'"\"" rest',
    "rest": rf'"\"" | {_character("rest")}',
    "number": '"-"? positive',
    "positive": 'natural ("." fraction)?',
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
        self._automaton: dict[_Spans, str] = {}
        self._rules["natural"] = self._digits(_by_length(0, 10**_MOST_DIGITS - 1))
        self._rules["fraction"] = self._digits(tuple(("0" * n, "9" * n) for n in range(1, _MOST_DIGITS + 1)))
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

    def _expression(self, schema: Schema) -> str:
        if "$ref" in schema:
            return "def" + str(schema["$ref"]).removeprefix("#/$defs/")
        if "anyOf" in schema:
            values = [value for one in schema["anyOf"] for value in one.get("enum", ())]
            ways = [self._expression(one) for one in schema["anyOf"] if "enum" not in one]
            return self._rule(_either(ways + ([self._enum(values)] if values else [])))
        if "enum" in schema:
            return self._enum(schema["enum"])
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
                most = 10**_MOST_DIGITS - 1
                return self._rule(self._integer(schema.get("minimum", -most), schema.get("maximum", most)))
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
            member = f"{literal(_json(name) + ': ')} {self._expression(value)}"
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
        end = "rest" if high is None else self._up_to(high - low)
        return self._rule(rf'"\"" {self._exactly(low)} {end}')

    def _exactly(self, count: int) -> str:
        return " ".join([self._just(_BLOCK)] * (count // _BLOCK) + [self._just(count % _BLOCK)])

    def _just(self, count: int) -> str:
        """One chain of rules for all lengths: what each of its characters costs is paid once."""
        for length in range(1, count + 1):
            self._rules.setdefault(f"just{length}", _character(f"just{length - 1}" if length > 1 else ""))
        return f"just{count}" if count else '""'

    def _up_to(self, count: int) -> str:
        """At most ``count`` characters, and the string's end."""
        self._rules.setdefault("upto0", r'"\""')
        for length in range(1, min(count, _BLOCK - 1) + 1):
            self._rules.setdefault(f"upto{length}", rf'"\"" | {_character(f"upto{length - 1}")}')
        for length in range(count % _BLOCK + _BLOCK, count + 1, _BLOCK):
            self._rules.setdefault(f"upto{length}", f"upto{_BLOCK - 1} | {self._just(_BLOCK)} upto{length - _BLOCK}")
        return f"upto{count}"

    def _integer(self, low: int, high: int) -> str:
        ways = []
        if high >= 0:
            ways.append(self._digits(_by_length(max(0, low), high)))
        if low < 0:
            ways.append(f'"-" {self._digits(_by_length(max(1, -high), -low))}')
        return _either(ways)

    def _digits(self, spans: _Spans) -> str:
        """The digits that some span allows, one digit at a time, so that each leads to one place."""
        if spans not in self._automaton:
            self._automaton[spans] = name = f"digits{len(self._automaton)}"
            following: dict[_Spans, str] = {}
            for digit in "0123456789":
                after = tuple(sorted({_after(digit, *span) for span in spans if span[0][:1] <= digit <= span[1][:1]}))
                if after:
                    following[after] = following.get(after, "") + digit
            ways = ['""'] if _END in spans else []
            for after, digits in following.items():
                ways.append(f"[{digits}] {'' if after == (_END,) else self._digits(after)}")
            self._rules[name] = " | ".join(ways)
        return self._automaton[spans]

    def _enum(self, values: Iterable[object]) -> str:
        return self._rule(self._one_of(sorted({_json(value) for value in values})))

    def _one_of(self, texts: list[str]) -> str:
        """One of ``texts``, which are sorted: what several begin with is said once."""
        ways = []
        for first, group in groupby(texts, key=lambda text: text[:1]):
            same = list(group)
            common = _common(same[0], same[-1])
            rest = [text[len(common) :] for text in same]
            ways.append(literal(common) + (f" {self._rule(self._one_of(rest))}" if first and rest != [""] else ""))
        return _either(ways)


def _common(first: str, last: str) -> str:
    """What both begin with."""
    pairs = zip(first, last, strict=False)
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _by_length(low: int, high: int) -> _Spans:
    """The whole numbers from ``low``, at least 0, to ``high``: a span for each number of digits."""
    spans = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        least = 10 ** (digits - 1) if digits > 1 else 0
        spans.append((str(max(low, least)), str(min(high, 10**digits - 1))))
    return tuple(spans)


def _after(digit: str, low: str, high: str) -> tuple[str, str]:
    """What is left of a span behind its first digit."""
    rest = len(low) - 1
    return low[1:] if digit == low[0] else "0" * rest, high[1:] if digit == high[0] else "9" * rest


def _either(ways: Iterable[str]) -> str:
    return f"({' | '.join(ways)})"


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
