"""Services for tests of the surfaces: the real one, on a scripted engine whose steps the test may permit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from causerie.chat.build import scripted_service
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.engines.scripted import Script, ScriptedEngine


def says(answer: str | bytes | Iterable[int]) -> Script:
    """The script that answers everything with ``answer``."""
    ids = list(answer.encode() if isinstance(answer, str) else answer)
    return lambda prompt: ids


def endless(prompt: Sequence[int]) -> Iterable[int]:
    """The script that never ends by itself."""
    while True:
        yield ord("a")


def service_with(script: Script, *, settings: Settings | None = None, **engine: Any) -> ChatService:
    return scripted_service(settings or Settings(engine="scripted"), ScriptedEngine(script, **engine))


class Permits:
    """Steps that the engine may take; none until the test says so."""

    def __init__(self) -> None:
        self.semaphore = threading.Semaphore(0)

    def give(self, count: int) -> None:
        for _ in range(count):
            self.semaphore.release()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until ``condition`` holds; fails after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_idle(service: ChatService, seconds: float = 5.0) -> None:
    """Wait until nothing runs and nothing waits; fails after ``seconds``."""
    await until(lambda: not service.running and not service.waiting, seconds)
