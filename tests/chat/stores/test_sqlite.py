# ruff: noqa: ASYNC240 - nothing else runs on these tests' loops.
"""The SQLite file itself: who may read it, who has it, what happens to it, and how it is brought up to date."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from causerie.chat.store import Append, Retention
from causerie.chat.stores.sqlite import SQLiteStore
from causerie.chat.stores.sqlite_file import MIGRATIONS, migrate, store_error
from causerie.errors import StoreError, StoreFull
from tests.chat.stores.samples import ANSWER, answered, conversation, ignore, record, said, user, writes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.sqlite3"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    made = SQLiteStore(path)
    await made.open("one", ignore)
    yield made
    await made.close()


async def refusal(path: Path) -> str:
    """Why a store cannot be opened there."""
    with pytest.raises(StoreError) as caught:
        await SQLiteStore(path).open("two", ignore)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


async def test_only_its_user_may_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        made = SQLiteStore(path)
        await made.open("one", ignore)
    finally:
        os.umask(old)
    await answered(made, record())
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {"store.sqlite3": 0o600, "store.sqlite3-wal": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await made.close()
    assert [each.name for each in path.parent.iterdir()] == ["store.sqlite3"]


async def test_what_was_kept_is_there_after_reopening(path: Path, store: SQLiteStore) -> None:
    await answered(store, record())
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="not open"):
        await store.response("ada", "r1")
    again = SQLiteStore(path)
    await again.open("two", ignore)
    assert [event for _, event in await again.events("ada", "r1")] == list(ANSWER)
    await again.close()


async def test_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = SQLiteStore(":memory:")
    await made.open("one", ignore)
    await answered(made, record())
    await made.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_second_server_is_told_who_has_it(path: Path, store: SQLiteStore) -> None:
    assert "Another process uses this store" in await refusal(path)
    await answered(store, record())


async def test_no_store_is_made_of_something_else(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("Dear diary, " * 100)
    assert "damaged, or is no store" in await refusal(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipe (name)")
    other.close()
    assert "belongs to another program" in await refusal(path)


async def test_a_newer_schema_is_left_alone(path: Path, store: SQLiteStore) -> None:
    await store.close()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    before = path.read_bytes()
    assert "newer causerie (schema 99" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_damaged_file_is_called_so(path: Path, store: SQLiteStore) -> None:
    for n in range(50):
        await answered(store, record(f"r{n}"))
    await store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    assert "damaged" in await refusal(path)


async def test_damaged_contents_are_called_so(path: Path, store: SQLiteStore) -> None:
    await answered(store, record())
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE event SET data = x'5b' WHERE number = 2")
    db.close()
    await store.open("two", ignore)
    with pytest.raises(StoreError, match="damaged"):
        await store.events("ada", "r1")


async def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be opened for writing" in await refusal(tmp_path / "file" / "store")
    (tmp_path / "folder").mkdir()
    assert "cannot be opened for writing (Is a directory)" in await refusal(tmp_path / "folder")


async def test_a_file_that_may_only_be_read_is_called_so(path: Path, store: SQLiteStore) -> None:
    await store.close()
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as caught:
        db.execute("DELETE FROM response")
    db.close()
    assert "cannot be written" in str(store_error(caught.value))


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """For this process, writing beyond that size is an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_fails_loses_nothing_and_may_come_back(path: Path, store: SQLiteStore) -> None:
    await store.begin(record())
    await store.begin(record("r2"))
    await store.write([Append("r1", 1, said("a"))])
    with no_file_above((path.parent / "store.sqlite3-wal").stat().st_size):
        for _ in range(2):
            with pytest.raises(StoreError, match="disk that holds the store failed"):
                await store.write([Append("r1", 2, said("b")), Append("r2", 1, said("c" * 9000))])
        assert await store.events("ada", "r1") == [(1, said("a"))]
    await store.write([Append("r1", 2, said("b")), Append("r2", 1, said("c"))])
    await store.close()
    again = SQLiteStore(path)
    await again.open("two", ignore)
    assert (await again.events("ada", "r1"))[:2] == [(1, said("a")), (2, said("b"))]
    await again.close()


async def test_a_file_that_was_taken_away_takes_no_writes(path: Path, store: SQLiteStore) -> None:
    await store.begin(record())
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(StoreError, match="file is gone"):
        await store.write([Append("r1", 1, said("a"))])
    path.with_name("elsewhere").rename(path)
    await store.write([Append("r1", 1, said("a"))])


async def test_a_full_store_takes_nothing_more_until_something_goes(path: Path) -> None:
    store = SQLiteStore(path, max_bytes=2**18)
    await store.open("one", ignore)
    await store.create_conversation(conversation(), [])
    await store.begin(record("r0"))
    with pytest.raises(StoreFull, match="--store-max-gib"):
        for n in range(1, 1000):
            await answered(store, record(f"r{n}"), [said("a" * 500), *ANSWER[-1:]])
    assert path.stat().st_size <= 2**18
    # What runs has some room to come to its end.
    await store.write(writes("r0", ANSWER))
    with pytest.raises(StoreFull):
        await store.add_items("ada", "c1", [user("i1")])
    assert await store.sweep(0, Retention(None, 2**17)) > 0
    assert path.stat().st_size <= 2**18
    await answered(store, record("new"))
    assert await store.response("ada", "r0") is not None
    await store.close()


async def test_a_running_response_that_fills_the_store_is_refused_whole(path: Path) -> None:
    store = SQLiteStore(path, max_bytes=2**18)
    await store.open("one", ignore)
    await store.begin(record())
    await store.write([Append("r1", 1, said("a"))])
    with pytest.raises(StoreFull):
        await store.write([Append("r1", 2, said("b")), Append("r1", 3, said("c" * 2**18))])
    assert len(await store.events("ada", "r1")) == 1
    await store.write(writes("r1", ANSWER[-1:], before=[said("a")]))
    await store.close()


async def test_a_sweep_gives_room_back_to_the_disk(path: Path, store: SQLiteStore) -> None:
    for n in range(40):
        await answered(store, record(f"r{n}"), [said("a" * 50_000), *ANSWER[-1:]])
    await store.sweep(1e12, Retention(1.0, None))
    await store.close()
    assert path.stat().st_size < 200_000


def test_an_older_file_is_brought_up_to_date_or_left_as_it_was() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    db.execute("INSERT INTO conversation VALUES (1, 'c1', 'ada', 1.0, 1.0, '{}')")
    wrong = (*MIGRATIONS, ["ALTER TABLE conversation ADD COLUMN title TEXT", "DROP TABLE nothing"])
    with pytest.raises(sqlite3.OperationalError):
        migrate(db, wrong)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    with pytest.raises(sqlite3.OperationalError):
        db.execute("SELECT title FROM conversation")
    right = (*MIGRATIONS, ["ALTER TABLE conversation ADD COLUMN title TEXT NOT NULL DEFAULT ''"])
    for _ in range(2):
        migrate(db, right)
        assert db.execute("SELECT id, title FROM conversation").fetchall() == [("c1", "")]
        assert db.execute("PRAGMA user_version").fetchone() == (len(right),)
    with pytest.raises(StoreError, match=f"schema {len(right)}"):
        migrate(db)
    db.close()
