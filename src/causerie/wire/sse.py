"""Server-sent events: one JSON value per event, on one ``data:`` line, whatever the model said."""

from __future__ import annotations

import orjson

HEARTBEAT = b": keep-alive\n\n"
"""A comment: clients skip it, proxies see that the connection lives."""
DONE = b"data: [DONE]\n\n"

# Not line ends for SSE, but for clients that split lines as Python's ``str.splitlines`` does.
_ESCAPES = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def one_line(json: bytes) -> bytes:
    """The same JSON with every character escaped that anybody could take for a line's end."""
    if not json.isascii():
        for raw, escaped in _ESCAPES:
            if raw in json:
                json = json.replace(raw, escaped)
    return json


def json_text(text: str) -> bytes:
    """``text`` as a JSON string that may stand in a ``data:`` line."""
    return one_line(orjson.dumps(text))


def event(json: bytes) -> bytes:
    """An event whose data is ``json``."""
    return b"data: " + one_line(json) + b"\n\n"
