"""What a URL's query asks of stored responses and items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from causerie.errors import InvalidRequest, UnsupportedParameter
from causerie.wire.fields import QueryFields, shown

MAX_ID_LENGTH = 256
MAX_PAGE = 100
LOGPROBS = "message.output_text.logprobs"
"""The one member of an item that is left out unless it is asked for."""

# The others name members of items that this server does not make.
_INCLUDABLE = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


@dataclass(frozen=True, slots=True)
class ResponseQuery:
    """How a stored response is to be given."""

    stream: bool
    starting_after: int | None
    """The last sequence number that the client has; None for none."""


def parse_response_query(pairs: Iterable[tuple[str, str]]) -> ResponseQuery:
    """The query of ``GET /v1/responses/{id}``. Raises InvalidRequest or UnsupportedParameter."""
    fields = QueryFields(pairs)
    stream = fields.boolean("stream")
    after = fields.integer("starting_after", 0, 2**31 - 1)
    if after is not None and not stream:
        raise InvalidRequest("'starting_after' needs 'stream=true'.", param="starting_after")
    _take_include(fields)
    if fields.boolean("include_obfuscation"):
        raise UnsupportedParameter(
            "'include_obfuscation' is not supported by this server.", param="include_obfuscation"
        )
    fields.finish(("stream", "starting_after", "include", "include_obfuscation"))
    return ResponseQuery(stream, after)


def _take_include(fields: QueryFields) -> None:
    """``include``, which names nothing that is kept here; the API's clients write it ``include[]``."""
    for value in (*fields.all("include"), *fields.all("include[]")):
        check_includable(value)


def check_includable(value: object) -> None:
    """Refuse what the API does not know either."""
    if value not in _INCLUDABLE:
        raise UnsupportedParameter(f"'include' does not know {shown(value)}. Known: {LOGPROBS}.", param="include")


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A page of items."""

    after: str | None
    """The id of the item before the first one."""
    limit: int
    newest_first: bool


def parse_list_query(pairs: Iterable[tuple[str, str]]) -> ListQuery:
    """The query of a list of items. Raises InvalidRequest or UnsupportedParameter."""
    fields = QueryFields(pairs)
    after = fields.text("after", MAX_ID_LENGTH)
    limit = fields.integer("limit", 1, MAX_PAGE)
    order = fields.take("order")
    if order not in (None, "asc", "desc"):
        fields.refuse("order", "asc or desc", order)
    _take_include(fields)
    fields.finish(("after", "limit", "order", "include"))
    return ListQuery(after, 20 if limit is None else limit, order != "asc")


def parse_item_query(pairs: Iterable[tuple[str, str]]) -> None:
    """The query of one item, which changes nothing. Raises UnsupportedParameter."""
    fields = QueryFields(pairs)
    _take_include(fields)
    fields.finish(("include",))
