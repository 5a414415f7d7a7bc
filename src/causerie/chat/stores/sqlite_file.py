"""The SQLite file: how it is opened, what is in it, and how an older one is brought up to date."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from causerie.chat.stores import refusals
from causerie.errors import StoreError

APPLICATION_ID: Final = 0x63617573
"""Says in the file's header whose it is ("caus")."""

MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        """CREATE TABLE response (
            n INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            created REAL NOT NULL,
            model TEXT NOT NULL,
            parameters BLOB NOT NULL,
            input BLOB NOT NULL,
            output_id TEXT NOT NULL,
            instructions TEXT,
            previous TEXT,
            conversation TEXT,
            background INTEGER NOT NULL,
            runner TEXT NOT NULL,
            status TEXT,
            text TEXT,
            usage BLOB,
            ended REAL,
            reason TEXT,
            error BLOB
        )""",
        "CREATE INDEX response_ended ON response(ended) WHERE status IS NOT NULL",
        "CREATE UNIQUE INDEX response_running ON response(conversation) WHERE status IS NULL",
        """CREATE TABLE event (
            response INTEGER NOT NULL REFERENCES response(n) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            data BLOB NOT NULL,
            PRIMARY KEY (response, number)
        ) WITHOUT ROWID""",
        """CREATE TABLE conversation (
            n INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            created REAL NOT NULL,
            changed REAL NOT NULL,
            metadata BLOB NOT NULL
        )""",
        "CREATE INDEX conversation_changed ON conversation(changed)",
        """CREATE TABLE item (
            n INTEGER PRIMARY KEY,
            conversation INTEGER NOT NULL REFERENCES conversation(n) ON DELETE CASCADE,
            id TEXT NOT NULL,
            role TEXT NOT NULL,
            text TEXT NOT NULL,
            status TEXT NOT NULL,
            UNIQUE (conversation, id)
        )""",
        "CREATE INDEX item_order ON item(conversation, n)",
    ),
)
"""What brings a file from each schema version to the next. Never change one that was released; add one."""


def open_database(path: Path | None) -> sqlite3.Connection:
    """A connection that holds its file alone until it is closed or its process dies; None is memory.

    Raises StoreError, or sqlite3.Error for ``store_error``.
    """
    fresh = path is None or _make_private(path)
    connection = sqlite3.connect(path or ":memory:", timeout=1.0, isolation_level=None)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if fresh:  # It is written into the file each time.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA journal_size_limit = {16 * 2**20}")
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def bound(connection: sqlite3.Connection, max_bytes: int) -> None:
    """Let the file grow no further than that."""
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {max(max_bytes // page, 1)}")


def migrate(connection: sqlite3.Connection, steps: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring the schema up to date, all of it or nothing. Raises StoreError for a file that is not ours, or newer."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID and (application or tables or version):
            raise StoreError("This file belongs to another program. Name another one with --store.")
        if version > len(steps):
            raise StoreError(
                f"The store was written by a newer causerie (schema {version}; this one knows {len(steps)}). "
                "Upgrade causerie, or name another file with --store."
            )
        for statement in (statement for step in steps[version:] for statement in step):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _make_private(path: Path) -> bool:
    """See that there is a file, which only its user may read if it is made here; whether it is empty.

    SQLite gives the files beside it the same permissions.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
        return path.stat().st_size == 0
    except OSError as error:
        raise StoreError(
            f"The store cannot be opened for writing ({error.strerror}). Give this user the right to it, name "
            "another file with --store, or keep nothing with --store :memory:."
        ) from error


_DAMAGED = (
    "The store is damaged, or is no store of causerie's. Move the file away (sqlite3's .recover may save what is in "
    "it), or name another one with --store."
)
_READ_ONLY = "The store cannot be written. Give this user the right to write it, or name another file with --store."
_BUSY = (
    "Another process uses this store. Stop that one, give this server a file of its own with --store, or let several "
    "servers share a Redis store."
)
_MEANINGS = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: _READ_ONLY,
    sqlite3.SQLITE_IOERR: "The disk that holds the store failed, or does not take more. What was committed is kept.",
}


def store_error(error: sqlite3.Error) -> StoreError:
    """What SQLite's error means to whoever runs the server."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return refusals.full()
    return StoreError(_MEANINGS.get(code, f"The store failed ({type(error).__name__} {code})."))
