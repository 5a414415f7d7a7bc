"""A server that is killed at any moment, and what has to be there then."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from causerie.chat.records import INTERRUPTED, Item, Status, text_of
from causerie.chat.store import Store
from causerie.errors import Interrupted
from causerie.types import Failed, TextDelta
from tests.chat.stores.samples import record

ROOT = Path(__file__).parents[3]


def started(store: str, prefix: str, seed: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.chat.stores.crash_child", store, prefix, str(seed)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill_at_random(store: str, prefix: str, chance: random.Random) -> dict[str, int]:
    """Let a child write to the store and kill it; the highest number of each response that it reported."""
    with started(store, prefix, chance.randint(0, 10**6)) as child:
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


async def see_that_all_is_there(store: Store, reported: dict[str, int]) -> None:
    assert any(reported.values())
    for id_, least in reported.items():
        found = await store.events("ada", id_)
        assert [number for number, _ in found] == list(range(1, len(found) + 1))
        *kept, last = [event for _, event in found]
        assert isinstance(last, Failed) and isinstance(last.error, Interrupted)
        assert last.error.message == INTERRUPTED
        assert len(kept) >= least
        for number, event in enumerate(kept, 1):
            assert isinstance(event, TextDelta) and set(event.parts[0].text.split()) == {str(number)}
        ended = await store.response("ada", id_)
        assert ended is not None and ended.outcome is not None
        assert (ended.outcome.status, ended.outcome.text) == (Status.FAILED, text_of(kept))
        answer = [Item(f"out_{id_}", "assistant", text_of(kept), "incomplete")] if kept else []
        assert (await store.items("ada", f"c_{id_}")).items[1:] == answer
        await store.begin(record(f"next_{id_}", conversation=f"c_{id_}"))
