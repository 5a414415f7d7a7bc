"""Where responses and conversations are kept: one module for each medium."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from causerie.chat.store import Store
from causerie.errors import ConfigError

_REDIS = ("redis://", "rediss://", "unix://")


def make_store(reference: str, max_bytes: int, *, port: int = 0, environ: Mapping[str, str] = os.environ) -> Store:
    """The store that the setting ``store`` names, not opened yet.

    The default is a file for each ``port``, so that two servers do not meet in one. On port 0, which is another one
    each time, nothing could be found again: there it is memory.

    ``sweep`` keeps it at ``max_bytes``; a tenth above, it takes no more. Raises ConfigError for a reference that
    names none, and for a Redis one without its extra.
    """
    bound = max_bytes + max_bytes // 10
    if reference.startswith(_REDIS):
        return _redis(reference, bound)
    if not reference or "://" in reference or "\0" in reference:
        raise ConfigError(
            f"{reference!r} is no store. Give a file's path, :memory:, or redis://host:6379/0.", param="store"
        )
    from causerie.chat.stores.sqlite import SQLiteStore

    return SQLiteStore(_path(reference, port, environ), max_bytes=bound)


def place_of(reference: str, *, port: int, environ: Mapping[str, str] = os.environ) -> str:
    """What ``reference`` names, for whoever starts the server: a file, memory, or a Redis without its password."""
    if reference.startswith(_REDIS):
        return re.sub(r"//[^/]*@", "//", reference).partition("?")[0]
    path = _path(reference, port, environ)
    return "memory, for as long as the server runs" if path == ":memory:" else str(path)


def _path(reference: str, port: int, environ: Mapping[str, str]) -> str:
    if reference != "default":
        return reference
    return str(data_folder(environ) / f"responses-{port}.sqlite3") if port else ":memory:"


def _redis(url: str, max_bytes: int) -> Store:
    try:
        from causerie.chat.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigError(
            "A Redis store needs the extra: pip install 'causerie[redis]', or name a file with --store.", param="store"
        ) from None
    return RedisStore(url, max_bytes=max_bytes)


def data_folder(environ: Mapping[str, str]) -> Path:
    """Where causerie keeps what is the user's: ``XDG_DATA_HOME``, or what that stands for."""
    xdg = Path(environ.get("XDG_DATA_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".local" / "share") / "causerie"
