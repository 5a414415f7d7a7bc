"""Named values of a request, taken out one by one into valid Python values, with errors that name the field.

What nobody took is unknown. Values shown in errors are cut short; nothing here is proportional to a huge input.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn, TypeAlias
from urllib.parse import parse_qsl

import orjson

from causerie.errors import InvalidRequest, UnsupportedParameter

MAX_PARAMETERS = 2048
"""In one query string."""
MAX_PARTS = 4096
"""Parts of one message's content."""
MAX_SHOWN = 60
"""Characters of a bad value, or of an unknown name, that an error repeats."""

_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,40}(\.\d{0,40})?([eE][+-]?\d{1,4})?", re.ASCII)
_KINDS = {dict: "an object", list: "an array", bool: "a boolean", int: "an integer", float: "a number", str: "a string"}


def parse_object(body: bytes | str, what: str = "body") -> dict[str, object]:
    """What a client sent that must be one JSON object. Raises InvalidRequest, also for nesting past 1,024 levels."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The {what} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The {what} must be a JSON object, not {kind(value)}.")
    return value


def kind(value: object) -> str:
    """What a JSON value is, for an error message."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A JSON value as an error message repeats it: short, and never a whole structure."""
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "…")
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else kind(value)


ANY = object()
"""In a table of neutral values: whatever it is, it changes nothing here."""

Neutral: TypeAlias = Mapping[str, tuple[object, ...]]
"""Names that are known, each with the values that change nothing."""


def content_text(value: object, param: str, read_part: Callable[[object, str], str]) -> str:
    """A content: a string, or parts, each of which ``read_part`` reads with its path. Raises InvalidRequest."""
    if isinstance(value, str):
        return value
    if value is None:
        raise InvalidRequest(f"'{param}' is missing.", param=param)
    if not isinstance(value, list) or len(value) > MAX_PARTS:
        raise InvalidRequest(
            f"'{param}' must be a string or an array of at most {MAX_PARTS} parts, not {kind(value)}.", param=param
        )
    return "".join(read_part(part, f"{param}[{index}]") for index, part in enumerate(value))


class Fields:
    """A JSON object's members. Null counts as absent, as clients send it for what they leave out.

    ``path`` goes before a field's name in errors: ``messages[0].``.
    """

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._path = path

    def param(self, name: str) -> str:
        return self._path + name

    def take(self, name: str) -> object | None:
        """The raw value, or None; from now on the field is known."""
        return self._values.pop(name, None)

    def refuse(self, name: str, expected: str, value: object) -> NoReturn:
        param = self.param(name)
        raise InvalidRequest(f"'{param}' must be {expected}, not {shown(value)}.", param=param)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.take(name)
        if value is None:
            return default
        converted = self._boolean(value)
        if converted is None:
            self.refuse(name, "true or false", value)
        return converted

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        converted = self._integer(value)
        if converted is None or not low <= converted <= high:
            self.refuse(name, f"an integer from {low} to {high}", value)
        return converted

    def number(self, name: str, low: float, high: float, default: float, *, above: bool = False) -> float:
        """A finite number from ``low``, or strictly above it, to ``high``."""
        value = self.take(name)
        if value is None:
            return default
        converted = self._number(value)
        if converted is None or not low <= converted <= high or (above and converted == low):
            start = f"above {low:g} and at most" if above else f"from {low:g} to"
            self.refuse(name, f"a number {start} {high:g}", value)
        return converted

    def text(self, name: str, max_length: int) -> str | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > max_length:
            self.refuse(name, f"a string of at most {max_length} characters", value)
        return value

    def neutral(self, neutral: Neutral) -> None:
        """Take what is known and changes nothing; refuse what is known and would change something."""
        for name, values in neutral.items():
            value = self.take(name)
            if value is None or ANY in values or any(_same(value, accepted) for accepted in values):
                continue
            param = self.param(name)
            only = (
                f", except as {' or '.join(orjson.dumps(accepted).decode() for accepted in values)}" if values else ""
            )
            raise UnsupportedParameter(f"'{param}' is not supported by this server{only}.", param=param)

    def finish(self, known: Iterable[str] = (), elsewhere: Mapping[str, str] | None = None) -> None:
        """Refuse what nobody took, by its name; ``known`` is what a near miss is compared with.

        ``elsewhere`` has names of other protocols, each with what it is called here. A name is never suggested for
        itself, as where it is known but not beside what was given.
        """
        for name in self._values:
            cut = name[:MAX_SHOWN]
            others = [other for other in known if other != name]
            near = (elsewhere or {}).get(name) or next(iter(difflib.get_close_matches(cut, others, 1, 0.75)), None)
            hint = "" if near is None else f" Did you mean '{near}'?"
            param = self.param(cut)
            raise UnsupportedParameter(f"Unknown parameter '{param}'.{hint}", param=param)

    def _boolean(self, value: object) -> bool | None:
        return value if isinstance(value, bool) else None

    def _integer(self, value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _number(self, value: object) -> float | None:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def query_pairs(query: bytes) -> list[tuple[str, str]]:
    """A query string's parameters in order. Raises InvalidRequest."""
    try:
        return parse_qsl(query.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise InvalidRequest("The query string is not valid UTF-8.") from None
    except ValueError:
        raise InvalidRequest(f"The query string has more than {MAX_PARAMETERS} parameters.") from None


def refuse_query(query: bytes) -> None:
    """For a route whose URL has no parameters. Raises InvalidRequest, or UnsupportedParameter by name."""
    QueryFields(query_pairs(query)).finish()


def refuse_members(body: bytes) -> None:
    """For a route whose body is empty, or an object without members. Raises what ``refuse_query`` raises."""
    Fields(parse_object(body) if body else {}).finish()


def _same(value: object, accepted: object) -> bool:
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)


class QueryFields(Fields):
    """A query string's parameters: numbers and booleans are spelled as text; a name may be repeated."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        values: dict[str, list[str]] = {}
        for name, value in pairs:
            values.setdefault(name, []).append(value)
        super().__init__(values)

    def all(self, name: str) -> list[str]:
        """Every value of a repeatable parameter."""
        values = super().take(name)
        return values if isinstance(values, list) else []

    def take(self, name: str) -> object | None:
        values = self.all(name)
        if len(values) > 1:
            param = self.param(name)
            raise InvalidRequest(f"'{param}' is given {len(values)} times; once is enough.", param=param)
        return values[0] if values else None

    def finish(self, known: Iterable[str] = (), elsewhere: Mapping[str, str] | None = None) -> None:
        self.take("api-version")  # Azure's clients send it with everything; it changes nothing.
        super().finish(known, elsewhere)

    def _boolean(self, value: object) -> bool | None:
        return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())

    def _integer(self, value: object) -> int | None:
        return int(str(value)) if _INTEGER.fullmatch(str(value)) else None

    def _number(self, value: object) -> float | None:
        if not _NUMBER.fullmatch(str(value)):
            return None
        number = float(str(value))
        return number if math.isfinite(number) else None
