"""Servers to attack: on a script, where the test decides what is said and when; and on the real default model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest

from causerie.chat.build import build_service
from causerie.config import Settings
from causerie.engines.scripted import Script
from causerie.models.folder import ModelFolder
from tests.support.served import SONG, Served, scripted, served


class Serve(Protocol):
    """``settings`` are the server's; the rest is the scripted engine's. Everything is checked at the test's end."""

    def __call__(self, script: Script, settings: dict[str, Any] | None = None, **engine: Any) -> Served: ...


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(script: Script, settings: dict[str, Any] | None = None, **engine: Any) -> Served:
            service = scripted(script, Settings(engine="scripted", **(settings or {})), **engine)
            permits: threading.Semaphore | None = engine.get("permits")
            return stack.enter_context(served(service, song=SONG, permits=permits))

        yield start


@pytest.fixture(scope="session")
def real_server(default_folder: ModelFolder) -> Iterator[Served]:
    with served(build_service(Settings(max_batch_size=16, max_waiting=300))) as server:
        yield server
        server.errors.clear()  # Of other tests, which log some on purpose while this server is there.


@pytest.fixture
def real(real_server: Served) -> Iterator[Served]:
    """The default model, in production settings but for 16 sequences at once."""
    real_server.errors.clear()
    yield real_server
    real_server.check_aftermath()


@pytest.fixture(scope="module")
def steady_server() -> Iterator[Served]:
    with served(scripted(lambda _: b"ok", Settings(engine="scripted")), song=SONG) as server:
        yield server


@pytest.fixture
def steady(steady_server: Served) -> Iterator[Served]:
    """One server for all of a module's tests, checked after each; it answers everything with ``ok``."""
    yield steady_server
    steady_server.check_aftermath()
