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


async def test_readers_of_one_response_each_get_all_of_it_whoever_saw_its_end_first() -> None:
    stored = kept(Shared([END]), SAID)
    first, second = stored.reader(0), stored.reader(0)
    for reader in (first, second):
        assert [event async for event in reader] == [SAID, END] and reader.at_end


async def test_it_knows_what_the_text_that_came_says_to_have_been_shown() -> None:
    more = Numbered(2, TextDelta((Part(0, "bc", 1),), 1))
    stored = kept(Shared([more], [Numbered(3, END.event)]), SAID)
    assert (stored.acknowledged, stored.text_end(1), stored.ended) == (None, 1, False)
    assert [event async for event in stored.reader(1)] == [more, (3, END.event)]
    assert (stored.acknowledged, stored.text_end(2), stored.text_end(1), stored.ended) == (1, 3, 1, True)
    assert stored.event_at(2) == more.event
