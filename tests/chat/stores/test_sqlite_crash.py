"""A server that is killed at any moment: what it had reported as committed is there, and nothing behind a gap."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from causerie.chat.stores.sqlite import SQLiteStore
from causerie.errors import StoreError
from causerie.types import Failed
from tests.chat.stores.crash import kill_at_random, see_that_all_is_there, started
from tests.chat.stores.samples import ignore, record


async def test_what_was_reported_survives_being_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    chance = random.Random()
    for turn in range(5):
        reported = kill_at_random(str(path), f"t{turn}_", chance)
        store = SQLiteStore(path)
        await store.open("parent", ignore)
        await see_that_all_is_there(store, reported)
        await store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


async def test_a_store_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with started(str(path), "r") as child:
        assert child.stdout is not None and child.stdout.readline()
        try:
            with pytest.raises(StoreError, match="Another process uses this store"):
                await SQLiteStore(path).open("two", ignore)
        finally:
            child.kill()


async def test_an_interrupted_response_that_had_begun_nothing_ends_too(tmp_path: Path) -> None:
    first = SQLiteStore(tmp_path / "store.sqlite3")
    await first.open("one", ignore)
    await first.begin(record())
    await first.close()
    again = SQLiteStore(tmp_path / "store.sqlite3")
    await again.open("two", ignore)
    (ended,) = await again.events("ada", "r1")
    assert ended.number == 1 and isinstance(ended.event, Failed)
    await again.close()
