"""One tree of errors. What each means over HTTP and on a socket is said once, in ``causerie.web.errors``.

``str(error)`` is for the person who caused it: what was wrong, which field, what to do. It never holds a
path of the server, a traceback or another user's text.
"""

from __future__ import annotations

from collections.abc import Iterator


class CauserieError(Exception):
    """Base of every error that reaches a user.

    ``code`` is the machine-readable name (the ``code`` of an OpenAI error object), ``param`` the field at fault.
    ``request_id`` is known to clients, whom a server told of it.
    """

    code = "internal_error"
    request_id: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(CauserieError):
    """The request cannot be understood or holds a value out of range."""

    code = "invalid_value"


class UnsupportedParameter(InvalidRequest):
    """A parameter that this server or its engine cannot honour, refused by name rather than ignored."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's context window."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, context_window: int, *, param: str | None = "messages") -> None:
        super().__init__(
            f"This model's context window is {context_window} tokens, but the prompt has {prompt_tokens} "
            "and at least one must be left for the answer. Shorten the prompt.",
            param=param,
        )
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window


class RequestTooLarge(InvalidRequest):
    """A body, frame or field over its documented cap."""

    code = "request_too_large"


class RequestTimeout(CauserieError):
    """The client did not send the rest of its request in time."""

    code = "request_timeout"


class ModelNotFound(CauserieError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"


class DuplicateRequest(CauserieError):
    """A request with this id is still running."""

    code = "duplicate_request"


class ResponseNotFound(CauserieError):
    """No response or stream of this owner has this id."""

    code = "response_not_found"


class StreamExpired(CauserieError):
    """The stream was there, but its window for reading it again is over."""

    code = "stream_expired"


class PreviousResponseNotFound(InvalidRequest):
    """A response to be continued, or one before it, is not there."""

    code = "previous_response_not_found"


class PreviousResponseRunning(InvalidRequest):
    """A response cannot be continued before it has ended."""

    code = "previous_response_running"


class ResponseNotActive(InvalidRequest):
    """What is to be stopped or steered is not being generated."""

    code = "response_not_active"


class InvalidStreamId(InvalidRequest):
    """A name that no lane of a socket can have."""

    code = "invalid_stream_id"


class TooManyLanes(InvalidRequest):
    """A socket has as many lanes as it may have."""

    code = "websocket_stream_limit_reached"


class ConversationNotFound(CauserieError):
    code = "conversation_not_found"


class ConversationBusy(CauserieError):
    """Another response of this conversation is being generated."""

    code = "conversation_locked"


class ItemNotFound(CauserieError):
    code = "item_not_found"


class StoreError(CauserieError):
    """What keeps responses and conversations cannot be used. The text says what to do, and names no path."""

    code = "store_unavailable"


class StoreFull(StoreError):
    """There is no room for more."""

    code = "store_full"


class RecordUnreadable(StoreError):
    """One stored record is damaged, or of another version; the others are there."""

    code = "record_unreadable"


class Interrupted(CauserieError):
    """The server ended while it generated this answer; what it had said is kept."""

    code = "interrupted"


class Overloaded(CauserieError):
    """No room to run and no room to wait. ``retry_after`` is in whole seconds."""

    code = "overloaded"
    retry_after = 1

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TypedTextLimit(Overloaded):
    """All that is being typed under one API key is as much as it may be."""

    code = "typed_text_limit_reached"


class ShuttingDown(Overloaded):
    """The server is draining: it takes no new work, and ends what cannot finish by its deadline."""

    code = "server_shutting_down"


class EngineError(CauserieError):
    """The engine failed this request."""

    code = "engine_error"


class EngineOutOfMemory(EngineError):
    """The engine had no KV-cache block left for this request and ended it unfinished."""

    code = "engine_out_of_memory"


class Cancelled(CauserieError):
    """The response was stopped by somebody else than this reader."""

    code = "cancelled"


class InvalidKey(CauserieError):
    """No API key, or one that is not known here."""

    code = "invalid_api_key"


class ConnectionLost(CauserieError):
    """A client cannot reach the server, or no longer; what came of an answer is not all of it."""

    code = "connection_lost"


class ModelUnavailable(CauserieError):
    """A model reference that cannot be fetched, found, read or converted."""

    code = "model_unavailable"


class MissingExtra(ModelUnavailable):
    """The default install cannot load this; the message names the extra that can."""

    code = "missing_extra"


class ConfigError(CauserieError):
    """A setting with an impossible value, or an unknown one."""

    code = "invalid_setting"


def error_named(code: str | None, message: str, *, param: str | None = None) -> CauserieError:
    """The error of a code, as it was stored or sent; where the code is unknown, the plain class under it."""
    class_ = next((known for known in _tree(CauserieError) if known.code == code), CauserieError)
    error = class_.__new__(class_)  # Some are made of other values than their message.
    CauserieError.__init__(error, message, param=param)
    if code is not None and code != class_.code:
        error.code = code
    return error


def _tree(class_: type[CauserieError]) -> Iterator[type[CauserieError]]:
    yield class_
    for child in class_.__subclasses__():
        yield from _tree(child)
