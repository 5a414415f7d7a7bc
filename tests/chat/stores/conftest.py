"""The stores that the conformance tests run against."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from causerie.chat.store import Store
from causerie.chat.stores.sqlite import SQLiteStore
from tests.chat.stores.samples import ignore


@pytest.fixture(params=["file", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = SQLiteStore(":memory:" if request.param == "memory" else tmp_path / "data" / "store.sqlite3")
    await made.open("one", ignore)
    yield made
    await made.close()


@pytest.fixture
def reader(store: Store) -> Store:
    """Another server that reads what ``store`` writes; itself where only one has it."""
    return store
