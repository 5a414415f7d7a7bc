"""``Idempotency-Key``: a request that is sent again, because its answer got lost, is not carried out again."""

from __future__ import annotations

import hashlib
import re

from causerie.chat.records import Item, ResponseRecord
from causerie.errors import DuplicateRequest, InvalidRequest
from causerie.wire.responses_request import ResponseCall

_KEY = re.compile(rb"[\x21-\x7e]{1,255}")


def response_id(owner: str, key: bytes, call: ResponseCall) -> str:
    """The id of the response that this key stands for. Raises InvalidRequest."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            "'Idempotency-Key' must be 1 to 255 visible ASCII characters, without blanks.", param="Idempotency-Key"
        )
    if not call.store:
        raise InvalidRequest(
            "'Idempotency-Key' needs the response to be kept; leave out 'store': false.", param="Idempotency-Key"
        )
    return "resp_" + hashlib.sha256(owner.encode() + b"\0" + key).hexdigest()[:32]


def check_same(call: ResponseCall, made: ResponseRecord) -> None:
    """Raises DuplicateRequest if ``made``, the response of the same key, was asked for otherwise."""
    asked = (call.previous, call.conversation, call.instructions, call.background, dict(call.parameters))
    was = (made.previous, made.conversation, made.instructions, made.background, dict(made.parameters))
    if asked != was or _said(call.input) != _said(made.input):
        raise DuplicateRequest(
            "This 'Idempotency-Key' stands for another request already. Use a new one for each.",
            param="Idempotency-Key",
        )


def _said(items: tuple[Item, ...]) -> list[tuple[str, str]]:
    return [(item.role, item.text) for item in items]
