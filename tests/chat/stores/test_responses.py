"""What every store does with responses and their events."""

from __future__ import annotations

import asyncio
import time

import pytest

from causerie.chat.records import Outcome, Status
from causerie.chat.store import Append, End, Store
from causerie.errors import CauserieError, DuplicateRequest, EngineError, PreviousResponseNotFound
from causerie.types import Failed, FinishReason, Started, Usage
from tests.chat.stores.samples import ANSWER, answered, finished, record, said, writes


async def test_a_response_comes_back_as_it_was_kept(store: Store) -> None:
    made = record(previous="r0", background=True)
    await store.begin(made)
    assert await store.response("ada", "r1") == made


async def test_an_ended_response_has_its_outcome(store: Store) -> None:
    await answered(store, record())
    found = await store.response("ada", "r1")
    assert found is not None and found.outcome is not None
    assert (found.outcome.status, found.outcome.text, found.outcome.usage) == (
        Status.COMPLETED,
        "Hé là",
        Usage(3, 2, 1),
    )
    assert found.output is not None and found.output.id == "out_r1"


async def test_a_failed_response_keeps_its_error(store: Store) -> None:
    await answered(store, record(), [said("a"), Failed(EngineError("It broke.", param="x"), Usage(1, 1))])
    found = await store.response("ada", "r1")
    assert found is not None and found.outcome is not None
    error = found.outcome.error
    assert isinstance(error, EngineError) and (error.message, error.param) == ("It broke.", "x")
    (_, (_, failed)) = await store.events("ada", "r1")
    assert isinstance(failed, Failed) and isinstance(failed.error, EngineError)


async def test_events_are_read_from_any_number(store: Store) -> None:
    await answered(store, record())
    for after in range(len(ANSWER) + 2):
        found = await store.events("ada", "r1", after)
        assert found == [(number, event) for number, event in enumerate(ANSWER, 1) if number > after]


async def test_batches_of_many_responses_are_kept_in_order(store: Store) -> None:
    ids = [f"r{n}" for n in range(5)]
    for id_ in ids:
        await store.begin(record(id_))
    for number, event in enumerate(ANSWER[:-1], 1):
        await store.write([Append(id_, number, event) for id_ in ids])
    await store.write([write for id_ in ids for write in writes(id_, ANSWER[-1:], before=ANSWER[:-1])])
    for id_ in ids:
        assert [event for _, event in await store.events("ada", id_)] == list(ANSWER)


async def test_calls_made_at_once_keep_their_order(store: Store) -> None:
    await store.begin(record())
    await asyncio.gather(*(store.write([Append("r1", n, said(str(n)))]) for n in range(1, 40)))
    assert [event for _, event in await store.events("ada", "r1")] == [said(str(n)) for n in range(1, 40)]


async def test_a_taken_id_is_refused_to_everybody(store: Store) -> None:
    await answered(store, record())
    for owner in ("ada", "bob"):
        with pytest.raises(DuplicateRequest, match="'r1' is taken"):
            await store.begin(record(owner=owner))
    assert await store.response("bob", "r1") is None


async def test_a_gap_in_the_numbers_is_refused_whole(store: Store) -> None:
    await store.begin(record("r1"))
    await store.begin(record("r2"))
    for number in (0, 1, 3):
        with pytest.raises(RuntimeError, match="does not follow"):
            await store.write([Append("r1", 1, said("a")), Append("r2", 1, said("b")), Append("r1", number, said("c"))])
    assert await store.events("ada", "r1") == await store.events("ada", "r2") == []


async def test_nothing_is_written_behind_the_end(store: Store) -> None:
    await answered(store, record())
    with pytest.raises(CauserieError, match="was ended"):
        await store.write([Append("r1", len(ANSWER) + 1, said("more"))])
    assert len(await store.events("ada", "r1")) == len(ANSWER)


async def test_what_is_written_to_a_deleted_response_is_dropped(store: Store) -> None:
    await store.begin(record("r1"))
    await store.begin(record("r2"))
    await store.write([Append("r1", 1, said("a"))])
    assert await store.delete_response("ada", "r1")
    assert not await store.delete_response("ada", "r1")
    outcome = Outcome(Status.COMPLETED, "ab", Usage(1, 2), time.time())
    await store.write([Append("r1", 2, finished()), End("r1", outcome), Append("r2", 1, said("b"))])
    assert await store.response("ada", "r1") is None and await store.events("ada", "r1") == []
    assert await store.events("ada", "r2") == [(1, said("b"))]


async def test_a_deleted_response_leaves_its_id_free(store: Store) -> None:
    await answered(store, record())
    await store.delete_response("ada", "r1")
    await store.begin(record(owner="bob"))
    assert await store.events("bob", "r1") == []


async def test_a_chain_is_told_from_its_beginning(store: Store) -> None:
    for n in range(10):
        await answered(store, record(f"r{n}", previous=f"r{n - 1}" if n else None), [said(f"{n}"), finished()])
    found = await store.chain("ada", "r9")
    assert [each.id for each in found] == [f"r{n}" for n in range(10)]
    assert [each.output and each.output.text for each in found] == [f"{n}" for n in range(10)]


async def test_a_chain_with_a_missing_link_is_refused_by_its_name(store: Store) -> None:
    for id_, previous in (("r1", None), ("r2", "r1"), ("r3", "r2")):
        await answered(store, record(id_, previous=previous))
    await store.delete_response("ada", "r1")
    with pytest.raises(PreviousResponseNotFound, match="'r1'") as caught:
        await store.chain("ada", "r3")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(PreviousResponseNotFound, match="'r9'"):
        await store.chain("ada", "r9")


async def test_a_chain_never_enters_another_owners_responses(store: Store) -> None:
    await answered(store, record("r1", owner="bob"))
    await answered(store, record("r2", previous="r1"))
    with pytest.raises(PreviousResponseNotFound, match="'r1'"):
        await store.chain("ada", "r2")


async def test_a_chain_that_runs_in_a_circle_ends(store: Store) -> None:
    await answered(store, record("r1"))
    await answered(store, record("r2", previous="r1"))
    await store.delete_response("ada", "r1")
    await answered(store, record("r1", previous="r2"))
    assert (await store.chain("ada", "r1"))[-1].id == "r1"


async def test_a_cancelled_response_keeps_what_it_said(store: Store) -> None:
    await answered(store, record(), [Started(3), said("Hé"), finished(FinishReason.CANCELLED)])
    found = await store.response("ada", "r1")
    assert found is not None and found.outcome is not None and found.outcome.status is Status.CANCELLED
    assert found.output is not None and (found.output.text, found.output.status) == ("Hé", "incomplete")


async def test_another_owner_finds_nothing(store: Store) -> None:
    await answered(store, record())
    assert await store.response("bob", "r1") is None
    assert await store.events("bob", "r1") == []
    assert not await store.delete_response("bob", "r1")
    with pytest.raises(PreviousResponseNotFound):
        await store.chain("bob", "r1")
    assert await store.response("ada", "r1") is not None
