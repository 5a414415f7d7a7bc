"""Reading a request: its id, its headers, its body within limits of size and time."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from causerie.config import Settings
from causerie.errors import InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedParameter

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(:\d{1,5})?")


class ClientGone(Exception):
    """The client left before its request was complete, or before it was answered."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header called ``name``, which is given in lower case."""
    return next((value for key, value in scope["headers"] if key == name), None)


def request_id(scope: Scope) -> str:
    """The client's ``X-Request-Id``, if it is 1 to 128 visible ASCII characters; else a new one."""
    given = header(scope, b"x-request-id")
    return given.decode("ascii") if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def owner_of(scope: Scope) -> str:
    """Whose request it is: the name of its API key."""
    owner: str = scope["state"]["owner"]
    return owner


def id_header(scope: Scope) -> dict[str, str]:
    """The header that tells a client its request's id."""
    return {"x-request-id": scope["state"]["request_id"]}


async def send_json(value: object, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with ``value``, and with the request's id."""
    body = orjson.dumps(value)
    await Response(body, headers=id_header(scope), media_type="application/json")(scope, receive, send)


def host_of(scope: Scope) -> str | None:
    """The name or address in the Host header, in lower case, without its port.

    None for an HTTP/1.0 request that leaves it out. Raises InvalidRequest for a header that is no host, or of which
    there is not one.
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if not hosts and scope["http_version"] == "1.0":
        return None
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None:
        raise InvalidRequest("The Host header is missing or malformed.", param="Host")
    return str((match[1] or match[2]).decode("ascii")).lower()


def same_origin(scope: Scope) -> bool:
    """Whether a browser's page may open this socket: it has no Origin (so it is no browser), or ours."""
    origin, host = header(scope, b"origin"), header(scope, b"host")
    if origin is None:
        return True
    scheme, separator, authority = origin.lower().partition(b"://")
    if not separator or scheme not in (b"http", b"https") or host is None:
        return False
    default = b":443" if scheme == b"https" else b":80"
    return authority.removesuffix(default) == host.lower().removesuffix(default)


async def read_body(scope: Scope, receive: Receive, settings: Settings) -> bytes:
    """The whole body; see ``Body.read``."""
    return await Body(scope, receive, settings).read()


class Body:
    """A request's body within its limits of size and time. Half a body never passes for a whole one.

    Read it whole, or iterate over its pieces as they arrive. Raises RequestTooLarge before more is buffered,
    RequestTimeout, UnsupportedParameter, ClientGone. ``state["body_open"]`` of the scope says whether there is more to
    come.
    """

    def __init__(self, scope: Scope, receive: Receive, settings: Settings) -> None:
        self._state = scope["state"]
        self._receive = receive
        self._settings = settings
        self._size = 0
        self._begun = time.monotonic()
        self._state["body_open"] = True
        for name, plain in (("Content-Encoding", b"identity"), ("Transfer-Encoding", b"chunked")):
            if (header(scope, name.lower().encode()) or plain).lower() != plain:
                raise UnsupportedParameter(
                    f"No body is taken that is coded or compressed: the only '{name}' here is {plain.decode()}.",
                    param=name,
                )
        length = header(scope, b"content-length")
        if length is not None and length.isdigit() and (len(length) > 18 or int(length) > settings.max_body_bytes):
            raise self._too_large()

    @property
    def ended(self) -> bool:
        return not self._state["body_open"]

    async def read(self) -> bytes:
        """All of it, within ``body_timeout`` seconds."""
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while not self.ended:
                    pieces.append(await self._next())
        except TimeoutError:
            seconds = self._settings.body_timeout
            raise RequestTimeout(f"The rest of the body did not arrive within {seconds:g} seconds.") from None
        return b"".join(pieces)

    async def next_piece(self) -> bytes:
        """What has arrived, within ``body_timeout`` seconds, and ``streamed_body_timeout`` for all of them."""
        silence, whole = self._settings.body_timeout, self._settings.streamed_body_timeout
        left = self._begun + whole - time.monotonic()
        try:
            async with asyncio.timeout(min(silence, left)):
                return await self._next()
        except TimeoutError:
            if silence < left:
                raise RequestTimeout(f"Nothing more of the body arrived for {silence:g} seconds.") from None
            raise RequestTimeout(f"The body did not end within {whole:g} seconds.") from None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.ended:
            yield await self.next_piece()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        self._size += len(piece)
        if self._size > self._settings.max_body_bytes:
            raise self._too_large()
        self._state["body_open"] = message.get("more_body", False)
        return piece

    def _too_large(self) -> RequestTooLarge:
        limit = self._settings.max_body_bytes
        return RequestTooLarge(f"The body is larger than {limit} bytes, the most that this server takes.")


async def discard_body(receive: Receive, seconds: float) -> None:
    """Let a client that is still sending finish for a while, so that it reads its refusal and not a reset."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
