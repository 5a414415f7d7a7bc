"""Calling Redis: one client, our scripts, and what its errors mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from causerie.chat.store import EndedElsewhere
from causerie.chat.stores import refusals
from causerie.chat.stores.redis_scripts import SCRIPTS
from causerie.errors import CauserieError, ConfigError, StoreError, StoreFull

SCHEMA: Final = 1
_SCHEMA = "causerie:schema"

ANSWER_WITHIN: Final = 10.0
"""Seconds for Redis to answer; blocking reads ask for less."""

_REFUSALS: Final[dict[str, Callable[[str], CauserieError]]] = {
    "taken": refusals.taken,
    "no_conversation": refusals.no_conversation,
    "busy": refusals.busy,
    "no_item": refusals.no_item,
    "no_previous": refusals.no_previous,
    "full": lambda _: refusals.full(),
}


class Lapsed(StoreError):
    """This process's lease is over."""


class Refused(Exception):
    """What a script answered instead of "ok"."""

    def __init__(self, kind: str, ids: list[str]) -> None:
        super().__init__(kind, *ids)
        self.kind = kind
        self.ids = ids

    @property
    def error(self) -> Exception:
        if self.kind == "ended":
            return EndedElsewhere(self.ids)
        if self.kind == "gap":
            return RuntimeError(f"an event of response {self.ids[0]} does not follow the one before it")
        if self.kind == "lapsed":
            return Lapsed("This server had lost touch with Redis. Try again.")
        return _REFUSALS[self.kind](self.ids[0])


class Calls:
    """A client of one Redis that runs ``SCRIPTS``. Errors of the medium are StoreErrors."""

    def __init__(self, url: str) -> None:
        # A script is not sent twice: the first may have been carried out. RESP2 answers look alike in every redis-py.
        try:
            pool = ConnectionPool.from_url(
                url,
                max_connections=2**16,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_connect_timeout=ANSWER_WITHIN / 2,
                socket_timeout=ANSWER_WITHIN,
                health_check_interval=ANSWER_WITHIN,
            )
        except ValueError as error:
            raise ConfigError(f"The store's Redis URL is not valid: {error}.", param="store") from None
        self.redis: Any = Redis(connection_pool=pool)
        self._scripts = {name: self.redis.register_script(text) for name, text in SCRIPTS.items()}

    async def run(self, script: str, *args: str | bytes | float) -> list[Any]:
        """What the script answered behind "ok". Raises Refused."""
        with told_plainly():
            found: list[Any] = await self._scripts[script](args=args)
        status, *answer = found
        if status != b"ok":
            raise Refused(status.decode(), [each.decode() for each in answer])
        return answer

    async def see_that_it_fits(self) -> None:
        """Raises StoreError for a Redis that is not for us."""
        with told_plainly():
            memory = await self.redis.info("memory")
            await self.redis.set(_SCHEMA, SCHEMA, nx=True)
            found = await self.redis.get(_SCHEMA)
        if int(found) > SCHEMA:
            raise StoreError(
                f"The store was written by a newer causerie (schema {int(found)}; this one knows {SCHEMA}). "
                "Upgrade causerie, or name another database with --store."
            )
        if memory.get("maxmemory") and memory.get("maxmemory_policy") != "noeviction":
            raise StoreError(
                "This Redis throws keys away when its memory is full. Set its maxmemory-policy to noeviction, or name "
                "another one with --store."
            )

    async def close(self) -> None:
        with told_plainly():
            await self.redis.aclose()
            await self.redis.connection_pool.disconnect()


@contextmanager
def told_plainly() -> Iterator[None]:
    """Around each call: errors of the medium become StoreErrors, and a cancellation is not lost.

    redis-py swallows some that come at the moment when an answer does (seen with 8.1 on Python 3.11).
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    failure: Exception | None = None
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        failure = error
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    if failure is not None:
        raise store_error(failure) from failure


def store_error(error: Exception) -> CauserieError:
    """What an error of Redis means to whoever runs the server."""
    if isinstance(error.__cause__, exceptions.RedisError):  # Those of a new connection come wrapped.
        error = error.__cause__
    match error:
        case exceptions.AuthenticationError() | exceptions.NoPermissionError():
            return StoreError("Redis refuses this server. See that the user and password in --store may do everything.")
        case exceptions.BusyLoadingError():
            return StoreError("Redis is still loading its data. Try again in a moment.")
        case exceptions.ReadOnlyError():
            return StoreError("This Redis is a replica and takes no writes. Name the primary with --store.")
        case exceptions.ConnectionError() | exceptions.TimeoutError() | OSError():
            return StoreError(
                "Redis cannot be reached, or does not answer. See that it runs and that --store names it."
            )
    if str(error).startswith(("OOM", "command not allowed when used memory")):
        return StoreFull("Redis has no memory left. Delete responses, raise its maxmemory, or lower --store-max-gib.")
    if "WRONGTYPE" in str(error):
        return StoreError("The keys in Redis are not as causerie left them. Name another database with --store.")
    return StoreError(f"Redis failed ({type(error).__name__}).")
