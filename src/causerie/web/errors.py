"""What each error means over HTTP and on a socket: the one table, and the answers made from it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Scope

from causerie.errors import (
    Cancelled,
    CauserieError,
    ContextLengthExceeded,
    ConversationBusy,
    ConversationNotFound,
    DuplicateRequest,
    EngineOutOfMemory,
    Interrupted,
    InvalidKey,
    InvalidRequest,
    ItemNotFound,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    RecordUnreadable,
    RequestTimeout,
    RequestTooLarge,
    ResponseNotFound,
    ShuttingDown,
    StoreError,
    StoreFull,
    StreamExpired,
)
from causerie.wire.openai import error_object


class UnknownRoute(CauserieError):
    """No such path."""

    code = "unknown_route"


class MethodNotAllowed(CauserieError):
    """The path is there, but not for this method; ``allowed`` are those that it is there for."""

    code = "method_not_allowed"
    allowed: tuple[str, ...] = ()

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class ForeignOrigin(CauserieError):
    """A page of another site wants to open a socket here."""

    code = "foreign_origin"


class UnknownHost(InvalidRequest):
    """The client calls this server by a name that it does not have."""

    code = "unknown_host"


@dataclass(frozen=True, slots=True)
class Meaning:
    """An HTTP status, a WebSocket close code (RFC 6455, 7.4.1 and its registry), and the OpenAI API's type."""

    status: int
    close_code: int
    type: str


MEANINGS: dict[type[CauserieError], Meaning] = {
    CauserieError: Meaning(500, 1011, "server_error"),
    InvalidRequest: Meaning(400, 1008, "invalid_request_error"),
    ContextLengthExceeded: Meaning(400, 1009, "invalid_request_error"),
    RequestTooLarge: Meaning(413, 1009, "invalid_request_error"),
    RequestTimeout: Meaning(408, 1008, "invalid_request_error"),
    ModelNotFound: Meaning(404, 1008, "invalid_request_error"),
    DuplicateRequest: Meaning(409, 1008, "invalid_request_error"),
    ResponseNotFound: Meaning(404, 1008, "invalid_request_error"),
    StreamExpired: Meaning(410, 1008, "invalid_request_error"),
    ConversationNotFound: Meaning(404, 1008, "invalid_request_error"),
    ItemNotFound: Meaning(404, 1008, "invalid_request_error"),
    ConversationBusy: Meaning(409, 1008, "invalid_request_error"),
    StoreError: Meaning(503, 1011, "server_error"),
    StoreFull: Meaning(507, 1011, "server_error"),
    RecordUnreadable: Meaning(500, 1011, "server_error"),
    Interrupted: Meaning(500, 1011, "server_error"),
    Overloaded: Meaning(429, 1013, "rate_limit_error"),
    ShuttingDown: Meaning(503, 1012, "server_error"),
    EngineOutOfMemory: Meaning(503, 1011, "server_error"),
    ModelUnavailable: Meaning(503, 1011, "server_error"),
    # Not 409, which clients repeat by themselves: somebody wanted it to end.
    Cancelled: Meaning(499, 1011, "invalid_request_error"),
    UnknownRoute: Meaning(404, 1008, "invalid_request_error"),
    MethodNotAllowed: Meaning(405, 1008, "invalid_request_error"),
    UnknownHost: Meaning(400, 1008, "invalid_request_error"),
    InvalidKey: Meaning(401, 1008, "invalid_request_error"),
    ForeignOrigin: Meaning(403, 1008, "invalid_request_error"),
}
"""An error that is not listed means what its nearest listed base means."""


def meaning(error: CauserieError) -> Meaning:
    return next(MEANINGS[class_] for class_ in type(error).__mro__ if class_ in MEANINGS)


def error_body(error: CauserieError) -> bytes:
    """The error as a JSON body, or as the data of an event in a stream that has begun."""
    return error_object(error, meaning(error).type)


def error_response(error: CauserieError, request_id: str, *, close: bool = False) -> Response:
    """The answer to a request that failed before anything was answered. ``close``: the connection ends with it."""
    headers = {"x-request-id": request_id}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if close:
        headers["connection"] = "close"
    return Response(error_body(error), meaning(error).status, headers, "application/json")


def unknown_route(scope: Scope) -> UnknownRoute:
    """What a request or a handshake comes to that no route is for."""
    return UnknownRoute(f"{_asked(scope)}: there is nothing here. See GET / for what is.")


def method_not_allowed(scope: Scope, allowed: tuple[str, ...]) -> MethodNotAllowed:
    """What a request comes to whose path is there for the methods ``allowed`` alone."""
    return MethodNotAllowed(f"{_asked(scope)}: this path takes {', '.join(allowed)} only.", allowed=allowed)


def _asked(scope: Scope) -> str:
    return f"{scope.get('method', 'WebSocket')[:20]} {scope['path'][:200]}"
