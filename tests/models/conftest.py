"""A cache of its own for every test here, and a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import LocalHub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """causerie's own cache, empty: where converted folders appear."""
    monkeypatch.setenv("CAUSERIE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    server = LocalHub()
    yield server
    server.close()


@pytest.fixture
def used_hub(hub: LocalHub, cache: Path, tmp_path: Path) -> Iterator[LocalHub]:
    """The local hub as this process's, with an empty cache of huggingface_hub's own."""
    with hub.used(tmp_path / "hf"):
        yield hub
