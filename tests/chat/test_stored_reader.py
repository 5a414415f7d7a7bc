"""Reading what another process generates: no end that is not there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from causerie.chat.log import Numbered
from causerie.chat.stored_reader import Kept
from causerie.errors import ResponseNotFound
from causerie.types import Finished, FinishReason, Part, TextDelta, Usage

SAID = Numbered(1, TextDelta((Part(0, "a", 1),)))
END = Numbered(2, Finished((FinishReason.STOP,), Usage(1, 1)))


class Shared:
    """A store of which only ``follow`` is asked."""

    shared = True

    def __init__(self, *found: list[Numbered]) -> None:
        self._found = list(found)

    async def follow(self, owner: str, id_: str, after: int) -> list[Numbered]:
        if not self._found:
            await asyncio.Event().wait()
        return self._found.pop(0)

    async def response(self, owner: str, id_: str) -> None:
        return None


def kept(store: Any, *events: Numbered) -> Kept:
    return Kept(store, "ada", "r", events)


async def test_a_response_that_is_deleted_before_its_end_does_not_look_whole() -> None:
    reader = kept(Shared([]), SAID).reader(0)
    assert await anext(reader) == SAID
    with pytest.raises(ResponseNotFound, match="deleted"):
        await anext(reader)
    assert not reader.at_end


async def test_whoever_leaves_while_it_waits_is_not_at_the_end() -> None:
    reader = kept(Shared(), SAID).reader(1)
    waiting = asyncio.ensure_future(anext(reader, None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await reader.aclose()
    assert await waiting is None and not reader.at_end


async def test_a_reader_behind_the_end_has_everything() -> None:
    reader = kept(Shared(), SAID, END).reader(2)
    assert [event async for event in reader] == [] and reader.at_end
