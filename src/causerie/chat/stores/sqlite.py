"""The store of one server: a SQLite file, or nothing but memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from causerie.chat.log import Numbered
from causerie.chat.records import ConversationRecord, Item, ResponseRecord
from causerie.chat.store import MAX_CHAIN, Page, Retention, Write
from causerie.chat.stores import refusals
from causerie.chat.stores import sqlite_queries as queries
from causerie.chat.stores.sqlite_file import bound, open_database, store_error
from causerie.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")

_SWEEP = 16
"""Records that are removed in one transaction, so that running responses are not kept waiting."""
_VACUUM_PAGES = 256


class SQLiteStore:
    """Everything happens on one thread of its own, in the order of the calls. One process has the file alone.

    What a call has committed survives the process's death at any moment; a power cut may take the last of it.
    ``max_bytes`` bounds the file: past it, ``StoreFull``.
    """

    shared = False

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        self.path = None if str(path) == ":memory:" else Path(path).expanduser().absolute()
        """None for memory."""
        self._max_bytes = max_bytes
        self._thread: ThreadPoolExecutor | None = None
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    async def open(
        self,
        runner: str,
        on_cancel: Callable[[str], None],
        on_followed: Callable[[str], None] = lambda _: None,
        on_acknowledged: Callable[[str, int], None] = lambda _, __: None,
    ) -> None:
        self._thread = ThreadPoolExecutor(1, "causerie-store")
        try:
            await self._on_thread(self._open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            closed = asyncio.get_running_loop().run_in_executor(thread, self._close)
            thread.shutdown(wait=False)
            await closed

    async def begin(self, record: ResponseRecord, behind: str | None = None) -> None:
        await self._change(queries.begin, record, behind)

    async def write(self, writes: Sequence[Write]) -> None:
        await self._change(queries.write, writes)

    async def response(self, owner: str, id_: str) -> ResponseRecord | None:
        return await self._read(queries.response, owner, id_)

    async def events(self, owner: str, id_: str, after: int = 0) -> list[Numbered]:
        return await self._read(queries.events, owner, id_, after)

    async def follow(self, owner: str, id_: str, after: int) -> list[Numbered]:
        raise RuntimeError("no other process writes to this store")

    async def chain(self, owner: str, id_: str) -> list[ResponseRecord]:
        return await self._read(queries.chain, owner, id_)

    async def delete_response(self, owner: str, id_: str) -> bool:
        return await self._change(queries.delete_response, owner, id_)

    async def ask_cancel(self, id_: str) -> None:
        raise RuntimeError("no other process generates for this store")

    async def tell_acknowledged(self, id_: str, text_end: int) -> bool:
        raise RuntimeError("no other process generates for this store")

    async def create_conversation(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        await self._change(queries.create_conversation, record, items)

    async def conversation(self, owner: str, id_: str) -> ConversationRecord | None:
        return await self._read(queries.conversation, owner, id_)

    async def update_conversation(
        self,
        owner: str,
        id_: str,
        metadata: Mapping[str, str],
    ) -> ConversationRecord | None:
        return await self._change(queries.update_conversation, owner, id_, metadata)

    async def delete_conversation(self, owner: str, id_: str) -> bool:
        return await self._change(queries.delete_conversation, owner, id_)

    async def items(
        self,
        owner: str,
        conversation: str,
        *,
        after: str | None = None,
        limit: int = MAX_CHAIN,
        newest_first: bool = False,
    ) -> Page:
        return await self._read(queries.items, owner, conversation, after, limit, newest_first)

    async def item(self, owner: str, conversation: str, id_: str) -> Item | None:
        return await self._read(queries.item, owner, conversation, id_)

    async def add_items(self, owner: str, conversation: str, items: Sequence[Item]) -> None:
        await self._change(queries.add_items, owner, conversation, items)

    async def delete_item(self, owner: str, conversation: str, id_: str) -> bool:
        return await self._change(queries.delete_item, owner, conversation, id_)

    async def sweep(self, now: float, retention: Retention) -> int:
        removed = 0
        while True:
            batch = await self._change(queries.sweep, now, retention, _SWEEP)
            removed += batch
            if batch < _SWEEP:
                break
        while removed and await self._on_thread(self._shrink):
            pass
        return removed

    async def _read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        # No transaction: nobody else changes anything between two statements.
        return await self._on_thread(lambda: function(self._connection(), *args, **kwargs))

    async def _change(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._on_thread(lambda: self._transaction(lambda db: function(db, *args, **kwargs)))

    async def _on_thread(self, function: Callable[[], T]) -> T:
        if self._thread is None:
            raise refusals.closed()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except sqlite3.Error as error:
            raise store_error(error) from error

    # What follows runs on the store's thread.

    def _open(self) -> None:
        self._db = open_database(self.path)
        if self.path is not None:
            self._identity = _identity(self.path)
        self._transaction(queries.end_interrupted)
        if self._max_bytes is not None:
            bound(self._db, self._max_bytes)

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise refusals.closed()
        return self._db

    def _transaction(self, function: Callable[[sqlite3.Connection], T]) -> T:
        db = self._connection()
        if db.in_transaction:  # The last one could not even be rolled back.
            db.execute("ROLLBACK")
        db.execute("BEGIN IMMEDIATE")
        try:
            result = function(db)
            self._see_that_it_is_there()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite has rolled some failures back by itself.
                db.execute("ROLLBACK")
            raise
        return result

    def _see_that_it_is_there(self) -> None:
        """A file that was deleted takes every write, and keeps none."""
        if self.path is not None and _identity(self.path) != self._identity:
            raise StoreError("The store's file is gone, or another one is in its place. Restart the server.")

    def _shrink(self) -> bool:
        """Give some free pages back to the disk; whether more can be."""
        db = self._connection()
        free = queries.pragma(db, "freelist_count")
        db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        return 0 < queries.pragma(db, "freelist_count") < free


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
