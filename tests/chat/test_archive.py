"""What becomes of stored responses and their conversations where something comes in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

import orjson
import pytest

from causerie.chat.archive import Archive, Live
from causerie.chat.records import ConversationRecord, Item, Outcome, ResponseRecord, Status
from causerie.chat.service import ChatService
from causerie.chat.store import MAX_CHAIN, End, Retention, Write
from causerie.chat.stores.sqlite import SQLiteStore
from causerie.config import Settings
from causerie.errors import ConversationBusy, DuplicateRequest, InvalidRequest, ResponseNotFound, StoreFull
from causerie.types import Event, Finished
from causerie.wire.responses_request import ResponseCall, parse_response
from causerie.wire.sampling import Limits
from tests.support.service import Permits, endless, service_with, until, until_idle

KEEP = Retention(None, None)
SIZE = 2**18


class SlowToBegin(SQLiteStore):
    """Begins when the test lets it."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.begins = 0
        self.gate = asyncio.Event()
        self.ends: list[Status] = []

    async def begin(self, record: ResponseRecord, behind: str | None = None) -> None:
        self.begins += 1
        # Like a thread: what was begun comes to its end, whoever waits for it.
        await asyncio.shield(asyncio.ensure_future(self._begin(record, behind)))

    async def _begin(self, record: ResponseRecord, behind: str | None) -> None:
        await self.gate.wait()
        await super().begin(record, behind)

    async def write(self, writes: Sequence[Write]) -> None:
        await super().write(writes)
        self.ends += [write.outcome.status for write in writes if isinstance(write, End)]


@pytest.fixture
async def service() -> AsyncIterator[ChatService]:
    made = service_with(endless, settings=Settings(engine="scripted"))
    await made.start()
    yield made
    await made.stop()


def call(**fields: object) -> ResponseCall:
    return parse_response(orjson.dumps({"input": "Hi", **fields}), Limits("m", 9000, 4, 256, 9000))


async def ended(store: SQLiteStore) -> Outcome:
    async with asyncio.timeout(5):
        while (found := await store.response("ada", "r")) is None or found.outcome is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return found.outcome


async def with_conversation(archive: Archive, items: int = 0) -> None:
    await archive.store.create_conversation(ConversationRecord("c", "ada", time.time()), ())
    if items:
        await archive.store.add_items("ada", "c", [Item(f"i{n}", "user", str(n)) for n in range(items)])


async def test_a_client_that_leaves_while_its_response_is_begun_leaves_nothing_running(service: ChatService) -> None:
    store = SlowToBegin()
    archive = Archive(service, store, KEEP)
    await archive.start()
    await with_conversation(archive)
    creating = asyncio.create_task(archive.create("ada", call(conversation="c"), id_="r"))
    await until(lambda: store.begins)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await until_idle(service)
    store.gate.set()
    assert (await ended(store)).status is Status.CANCELLED
    live = await archive.create("ada", call(conversation="c", max_output_tokens=1))
    async with live.log.reader() as reader:
        assert [event async for event in reader]
    await archive.stop()


async def test_who_joins_a_response_while_it_is_begun_and_leaves_does_not_end_it(service: ChatService) -> None:
    store = SlowToBegin()
    archive = Archive(service, store, KEEP)
    await archive.start()
    creating = asyncio.create_task(archive.create("ada", call(max_output_tokens=5), id_="r"))
    await until(lambda: store.begins)
    await (await archive.find("ada", "r")).reader(0).aclose()
    store.gate.set()
    live = await creating
    async with live.log.reader() as reader:
        assert [event async for event in reader]
    outcome = await ended(store)
    assert (outcome.status, outcome.text) == (Status.INCOMPLETE, "aaaaa")
    await until_idle(service)
    assert not service._lingering
    await archive.stop()


async def in_background(service: ChatService) -> tuple[SlowToBegin, Archive, asyncio.Task[Live]]:
    """A response in the background that the store is beginning; its gate is closed."""
    store = SlowToBegin()
    archive = Archive(service, store, KEEP)
    await archive.start()
    creating = asyncio.create_task(archive.create("ada", call(background=True, max_output_tokens=5), id_="r"))
    await until(lambda: store.begins)
    return store, archive, creating


@pytest.mark.parametrize("joins", [False, True])
async def test_a_response_that_is_over_before_it_is_begun_and_has_no_reader_takes_no_place(
    service: ChatService, joins: bool
) -> None:
    store, archive, creating = await in_background(service)
    reader = (await archive.find("ada", "r")).reader(0) if joins else None
    await until_idle(service)
    if reader is not None:
        await reader.aclose()
    store.gate.set()
    await creating
    assert (await ended(store)).status is Status.INCOMPLETE
    assert not service._lingering
    await archive.stop()


async def test_who_asks_again_in_a_conversation_while_it_is_begun_is_told_that_it_is(service: ChatService) -> None:
    store = SlowToBegin()
    archive = Archive(service, store, KEEP)
    await archive.start()
    await with_conversation(archive)
    creating = asyncio.create_task(archive.create("ada", call(conversation="c", max_output_tokens=1), id_="r"))
    await until(lambda: store.begins)
    with pytest.raises(DuplicateRequest):
        await archive.create("ada", call(conversation="c"), id_="r")
    with pytest.raises(ConversationBusy):
        await archive.create("ada", call(conversation="c"), id_="other")
    store.gate.set()
    async with (await creating).log.reader() as reader:
        assert [event async for event in reader]
    await archive.stop()


async def test_a_background_response_goes_on_although_its_client_left_while_it_was_begun(
    service: ChatService,
) -> None:
    store, archive, creating = await in_background(service)
    creating.cancel()
    await asyncio.wait({creating})
    store.gate.set()
    outcome = await ended(store)
    assert (outcome.status, outcome.text) == (Status.INCOMPLETE, "aaaaa")
    await archive.stop()


async def test_stopping_waits_for_a_response_that_is_being_begun(service: ChatService) -> None:
    store = SlowToBegin()
    archive = Archive(service, store, KEEP)
    await archive.start()
    creating = asyncio.create_task(archive.create("ada", call(background=True), id_="r"))
    await until(lambda: store.begins)
    await service.stop()
    stopping = asyncio.create_task(archive.stop())
    await asyncio.sleep(0)
    store.gate.set()
    await stopping
    await creating
    assert store.ends == [Status.FAILED]


async def test_a_long_conversation_goes_on_from_its_latest_items(service: ChatService) -> None:
    archive = Archive(service, SQLiteStore(":memory:"), KEEP)
    await archive.start()
    await with_conversation(archive, MAX_CHAIN + 3)
    history = await archive.history("ada", call(conversation="c"))
    assert [item.id for item in (history[0], history[-1])] == ["i3", f"i{MAX_CHAIN + 2}"]
    await archive.stop()


async def test_who_was_refused_may_ask_again_under_the_same_id(service: ChatService) -> None:
    archive = Archive(service, SQLiteStore(":memory:"), KEEP)
    await archive.start()
    await with_conversation(archive)
    wanted = call(conversation="c", max_output_tokens=1, on_disconnect="continue")
    with pytest.raises(ConversationBusy):
        await archive.create("ada", wanted, id_="r", history=[Item("elsewhere", "user", "Hi")])
    await until_idle(service)
    async with (await archive.create("ada", wanted, id_="r")).log.reader() as reader:
        assert [event async for event in reader]
    await archive.stop()


async def test_a_busy_conversation_is_told_in_the_stores_words(service: ChatService) -> None:
    store = SQLiteStore(":memory:")
    archive = Archive(service, store, KEEP)
    await archive.start()
    await with_conversation(archive)
    live = await archive.create("ada", call(conversation="c"), id_="r")
    with pytest.raises(ConversationBusy) as here:
        await archive.create("ada", call(conversation="c"))
    with pytest.raises(ConversationBusy) as there:
        await store.begin(replace(live.record, id="other"))
    assert here.value.message == there.value.message
    await archive.delete("ada", "r")
    await archive.stop()


class Counting(SQLiteStore):
    """Counts its sweeps, and holds each until the test lets it go."""

    def __init__(self) -> None:
        super().__init__(":memory:", max_bytes=SIZE + SIZE // 10)
        self.sweeps = 0
        self.refusals = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def begin(self, record: ResponseRecord, behind: str | None = None) -> None:
        try:
            await super().begin(record, behind)
        except StoreFull:
            self.refusals += 1
            raise

    async def sweep(self, now: float, retention: Retention) -> int:
        self.sweeps += 1
        await self.gate.wait()
        return await super().sweep(now, retention)


async def to_end(live: Live) -> Event:
    async with live.log.reader() as reader:
        return [event async for _, event in reader][-1]


async def test_what_has_ended_makes_room_for_what_begins_and_what_runs(service: ChatService) -> None:
    archive = Archive(service, Counting(), Retention(None, SIZE))
    await archive.start()
    ids = [f"r{number}" for number in range(60)]
    for id_ in ids:
        end = await to_end(await archive.create("ada", call(input="x" * 2000, max_output_tokens=200), id_=id_))
        assert isinstance(end, Finished), end
    kept = [id_ for id_ in ids if await archive.store.response("ada", id_) is not None]
    assert 0 < len(kept) < len(ids) and kept == ids[-len(kept) :]
    for number in range(200):
        record, items = ConversationRecord(f"c{number}", "ada", time.time()), (Item("i", "user", "x" * 2000),)
        await archive.keep(partial(archive.store.create_conversation, record, items))
    assert not await archive.store.response("ada", ids[-1])
    await archive.stop()


async def test_all_that_meet_a_full_store_wait_for_one_sweep_and_are_refused_where_nothing_may_go() -> None:
    service = service_with(endless, permits=Permits().semaphore)
    await service.start()
    store = Counting()
    archive = Archive(service, store, Retention(None, SIZE))
    await archive.start()

    async def begin(number: int) -> Live:
        return await archive.create("ada", call(input="x" * 2000, background=True), id_=f"r{number}")

    with pytest.raises(StoreFull):
        for number in range(1000):
            await begin(number)
    sweeps, refusals = store.sweeps, store.refusals
    store.gate.clear()
    many = [asyncio.create_task(begin(number)) for number in range(1000, 1005)]
    await until(lambda: store.refusals == refusals + 5)
    assert not any(task.done() for task in many)
    store.gate.set()
    assert all(isinstance(each, StoreFull) for each in await asyncio.gather(*many, return_exceptions=True))
    assert store.sweeps == sweeps + 1
    await archive.delete("ada", "r0")
    assert (await begin(1005)).record.id == "r1005"
    await service.stop()
    await archive.stop()


async def test_when_it_ended_is_told_to_who_reads_it_while_it_is_deleted(service: ChatService) -> None:
    archive = Archive(service, SQLiteStore(":memory:"), KEEP)
    await archive.start()
    await to_end(await archive.create("ada", call(max_output_tokens=3), id_="r"))
    stream = await archive.find("ada", "r")
    assert stream.record.outcome is not None
    await archive.delete("ada", "r")
    assert [event async for event in stream.reader(0)] and stream.ended_at() == stream.record.outcome.ended
    await archive.stop()


async def test_a_deleted_response_is_not_read_as_a_stream_either(service: ChatService) -> None:
    archive = Archive(service, SQLiteStore(":memory:"), KEEP)
    await archive.start()
    await archive.create("ada", call(background=True, max_output_tokens=1), id_="r")
    await until_idle(service)
    with pytest.raises(ResponseNotFound):
        await archive.delete("bob", "r")
    assert service.streams.find("ada", "r")
    await archive.delete("ada", "r")
    with pytest.raises(ResponseNotFound):
        service.streams.find("ada", "r")
    await archive.stop()


async def test_a_request_that_could_never_run_leaves_no_stream(service: ChatService) -> None:
    asked = call(on_disconnect="continue").request("r", "ada")
    with pytest.raises(InvalidRequest):
        await service.create(replace(asked, n=service.settings.max_batch_size + 1))
    with pytest.raises(ResponseNotFound):
        service.streams.find("ada", "r")


async def test_an_answer_that_cannot_be_remembered_ends_all_the_same(
    service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(service.text, "seen", broken)
    archive = Archive(service, SQLiteStore(":memory:"), KEEP)
    await archive.start()
    live = await archive.create("ada", call(max_output_tokens=2), id_="r")
    async with asyncio.timeout(5), live.log.reader() as reader:
        events = [event async for _, event in reader]
    assert isinstance(events[-1], Finished)
    await until_idle(service)
    await archive.stop()


async def test_an_empty_input_in_an_empty_conversation_is_refused_by_its_name(service: ChatService) -> None:
    archive = Archive(service, SQLiteStore(":memory:"), KEEP)
    await archive.start()
    await with_conversation(archive)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="'input' is empty") as refused:
            await archive.create("ada", call(conversation="c", input=[]))
        assert refused.value.param == "input"
    await archive.stop()
