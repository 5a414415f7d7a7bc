"""A server as the client sees it: where it is, how it is spoken to, and what its refusals mean."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from causerie.errors import CauserieError, ConfigError, ConnectionLost, InvalidRequest, Overloaded, error_named

KEY_VARIABLE = "CAUSERIE_API_KEY"

_MAX_EVENT = 64 * 2**20
"""Bytes of an event: the last one of a response repeats all of it."""

_MAX_GRACE = 3600.0
"""Seconds: a server refuses a request that asks it to wait for longer."""


class Cut(Exception):
    """The connection ended before the stream did, or there was none to be had."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds.

    A server that is generating says something every few seconds, if only that it is there: one that is silent for
    ``silence`` is taken to be gone. After a cut the client tries to connect again for ``reconnect``. The server is
    asked to keep the answer going for as long as both together, and an hour at most.
    """

    connect: float = 10.0
    silence: float = 45.0
    reconnect: float = 30.0

    @property
    def grace(self) -> str:
        """The same as a request tells it to the server."""
        return f"grace({min(self.silence + self.reconnect, _MAX_GRACE):.3f})"


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] | None = None
    json: Any = None
    content: str | None = None


class Server:
    """Close it. ``key`` is an API key, if the server wants one."""

    def __init__(self, url: str, key: str | None, patience: Patience) -> None:
        key = os.environ.get(KEY_VARIABLE) if key is None else key
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ConfigError(
                "This is no API key: it is empty, or holds a blank or something unusual.", param="api_key"
            )
        self.patience = patience
        self.url = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout = httpx2.Timeout(patience.silence, connect=patience.connect)
        try:
            self._http = httpx2.AsyncClient(
                base_url=self.url,
                headers=self.headers,
                timeout=timeout,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            )
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{url!r} is no server's address: {error}", param="url") from None

    def socket_url(self, path: str) -> str:
        scheme, _, rest = self.url.partition("://")
        return f"{'wss' if scheme == 'https' else 'ws'}://{rest}{path}"

    async def aclose(self) -> None:
        await self._http.aclose()

    async def json(self, call: Call) -> Any:
        """The answer to a call. Raises Cut, ConnectionLost if nobody answers there, or what the server refused with."""
        async with self._answer(call) as response:
            await response.aread()
            try:
                return response.json()
            except ValueError:
                raise _not_ours(response) from None

    @asynccontextmanager
    async def events(self, call: Call) -> AsyncGenerator[httpx2.EventSource, None]:
        """A stream that has been opened; its events end with the connection, however it ends, or with Cut.

        Raises what ``json`` raises.
        """
        async with self._answer(call) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise _not_ours(response)
            yield httpx2.EventSource(response, _MAX_EVENT)

    @asynccontextmanager
    async def _answer(self, call: Call) -> AsyncGenerator[httpx2.Response, None]:
        """The response to a call, its head read. What goes wrong with the connection meanwhile is a Cut."""
        headers = dict(call.headers)
        try:
            request = self._http.build_request(
                call.method, call.path, params=call.query, json=call.json, content=call.content, headers=headers
            )
        except UnicodeEncodeError:
            raise InvalidRequest("The text is not valid Unicode: it holds half of a surrogate pair.") from None
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                yield response
            finally:
                await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ConnectionLost(f"No server answers at {self.url}.") from error
        except (httpx2.UnsupportedProtocol, httpx2.SSEError) as error:
            raise ConfigError(f"{self.url} is no causerie server: {error}", param="url") from error
        except httpx2.TransportError as error:
            raise Cut(str(error) or type(error).__name__) from error


def _refusal(response: httpx2.Response) -> CauserieError:
    try:
        body = response.json()
    except ValueError:
        body = None
    described = body.get("error") if isinstance(body, dict) else None
    if not isinstance(described, dict):
        return _not_ours(response)
    error = error_of(described)
    error.request_id = response.headers.get("x-request-id")
    if isinstance(error, Overloaded):
        seconds = response.headers.get("retry-after", "")
        error.retry_after = int(seconds) if seconds.isdecimal() else Overloaded.retry_after
    return error


def error_of(described: Mapping[str, Any]) -> CauserieError:
    """The error that an error object of the server tells of."""
    return error_named(described.get("code"), str(described.get("message")), param=described.get("param"))


def _not_ours(response: httpx2.Response) -> CauserieError:
    """A proxy's own page, or another server's."""
    if response.status_code in (502, 503, 504):
        return Overloaded(f"The server is behind something that answers {response.status_code} in its place.")
    return CauserieError(
        f"What answered {response.request.method} {response.request.url.path} is no causerie server: "
        f"status {response.status_code}, {response.headers.get('content-type') or 'no content type'}."
    )
