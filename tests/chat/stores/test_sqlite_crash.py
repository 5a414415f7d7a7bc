# ruff: noqa: ASYNC220 - nothing else runs on these tests' loops.
"""A server that is killed at any moment: what it had reported as committed is there, and nothing behind a gap."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from causerie.chat.records import INTERRUPTED, Item, Status, text_of
from causerie.chat.stores.sqlite import SQLiteStore
from causerie.errors import Interrupted, StoreError
from causerie.types import Failed, TextDelta
from tests.chat.stores.samples import ignore, record

ROOT = Path(__file__).parents[3]


def kill_at_random(path: Path, prefix: str, chance: random.Random) -> dict[str, int]:
    """Let a child write to the store and kill it; the highest number of each response that it reported."""
    command = [sys.executable, "-m", "tests.chat.stores.crash_child", str(path), prefix, str(chance.random())[2:9]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        last = ""
        for _ in range(chance.randint(1, 60)):
            last = child.stdout.readline()
        assert last, "the child ended by itself"
        child.kill()
        # What it reported between then and its death counts too; its last line may be half a line.
        complete = [line for line in child.stdout if line.endswith("\n")]
    reported = (complete or [last])[-1].split()
    return {id_: int(number) for id_, _, number in (each.partition("=") for each in reported)}


async def see_that_all_is_there(store: SQLiteStore, reported: dict[str, int]) -> None:
    for id_, least in reported.items():
        found = await store.events("ada", id_)
        assert [number for number, _ in found] == list(range(1, len(found) + 1))
        *kept, last = [event for _, event in found]
        assert isinstance(last, Failed) and isinstance(last.error, Interrupted)
        assert last.error.message == INTERRUPTED
        assert len(kept) >= least > 0
        for number, event in enumerate(kept, 1):
            assert isinstance(event, TextDelta) and set(event.parts[0].text.split()) == {str(number)}
        ended = await store.response("ada", id_)
        assert ended is not None and ended.outcome is not None
        assert (ended.outcome.status, ended.outcome.text) == (Status.FAILED, text_of(kept))
        answer = Item(f"out_{id_}", "assistant", text_of(kept), "incomplete")
        assert (await store.items("ada", f"c_{id_}")).items[-1] == answer
        await store.begin(record(f"next_{id_}", conversation=f"c_{id_}"))


async def test_what_was_reported_survives_being_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    chance = random.Random()
    for turn in range(5):
        reported = kill_at_random(path, f"t{turn}_", chance)
        store = SQLiteStore(path)
        await store.open("parent", ignore)
        await see_that_all_is_there(store, reported)
        await store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


async def test_a_store_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    command = [sys.executable, "-m", "tests.chat.stores.crash_child", str(path), "r", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
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
