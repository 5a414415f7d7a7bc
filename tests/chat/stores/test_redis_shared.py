"""Several servers with one Redis: they follow and cancel each other's responses, and end those of a dead one."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator

import pytest

from causerie.chat.event_codec import encode
from causerie.chat.journal import Journal
from causerie.chat.log import Numbered, ResponseLog
from causerie.chat.records import Status
from causerie.chat.store import Append, Retention
from causerie.chat.stores.redis import RedisStore
from causerie.chat.sweeper import Sweeper
from causerie.errors import ConversationBusy, Interrupted, StoreError
from causerie.types import CancelCause, Failed, TextDelta
from tests.chat.stores.crash import kill_at_random, see_that_all_is_there, started
from tests.chat.stores.samples import ANSWER, answered, conversation, ignore, record, said, user, writes


@pytest.fixture
async def one(empty_redis: str) -> AsyncIterator[RedisStore]:
    made = RedisStore(empty_redis)
    await made.open("one", ignore)
    yield made
    await made.close()


@pytest.fixture
async def two(empty_redis: str, cancelled: asyncio.Queue[str]) -> AsyncIterator[RedisStore]:
    made = RedisStore(empty_redis)
    await made.open("two", cancelled.put_nowait)
    yield made
    await made.close()


@pytest.fixture
def cancelled() -> asyncio.Queue[str]:
    return asyncio.Queue()


@pytest.fixture
async def gone(empty_redis: str, one: RedisStore) -> None:
    """A server that ended while ``r1`` had said "Hé" in the conversation ``c1``."""
    made = RedisStore(empty_redis)
    await made.open("gone", ignore)
    await made.create_conversation(conversation(), [])
    await made.begin(record(conversation="c1"))
    await made.write([Append("r1", 1, said("Hé", 2))])
    await made.close()


async def follow_all(store: RedisStore, id_: str) -> list[Numbered]:
    found: list[Numbered] = []
    while more := await store.follow("ada", id_, len(found)):
        found += more
    return found


async def see_that_it_ended_once(store: RedisStore) -> None:
    delta, failed = await store.events("ada", "r1")
    assert delta == (1, said("Hé", 2)) and failed.number == 2
    assert isinstance(failed.event, Failed) and isinstance(failed.event.error, Interrupted)
    assert failed.event.usage.completion_tokens == 2
    ended = await store.response("ada", "r1")
    assert ended is not None and ended.outcome is not None and ended.outcome.status is Status.FAILED
    page = await store.items("ada", "c1")
    assert [(item.text, item.status) for item in page.items] == [("Salut", "completed"), ("Hé", "incomplete")]


async def test_another_server_follows_from_any_number(one: RedisStore, two: RedisStore) -> None:
    await two.begin(record())
    followers = [asyncio.create_task(follow_all(one, "r1")) for _ in range(3)]
    for number, event in enumerate(ANSWER[:-1], 1):
        await two.write([Append("r1", number, event)])
        assert await one.follow("ada", "r1", number - 1) == [(number, event)]
    await two.write(writes("r1", ANSWER[-1:], before=ANSWER[:-1]))
    for found in await asyncio.gather(*followers):
        assert found == list(enumerate(ANSWER, 1))
    assert await one.follow("ada", "r1", len(ANSWER)) == []
    assert await one.follow("bob", "r1", 0) == await one.follow("ada", "r2", 0) == []


async def test_a_follower_of_a_deleted_response_is_let_go(empty_redis: str, one: RedisStore) -> None:
    brief = RedisStore(empty_redis, lease=1.0)
    await brief.open("brief", ignore)
    await brief.begin(record())
    follower = asyncio.create_task(one.follow("ada", "r1", 0))
    await asyncio.sleep(0)
    await brief.delete_response("ada", "r1")
    assert await follower == []
    await brief.close()


async def test_a_response_is_cancelled_where_it_is_generated(
    one: RedisStore, two: RedisStore, cancelled: asyncio.Queue[str]
) -> None:
    await two.begin(record())
    await one.ask_cancel("r1")
    assert await cancelled.get() == "r1"
    await two.write(writes("r1", ANSWER))
    await one.ask_cancel("r1")
    await one.ask_cancel("r2")
    assert cancelled.empty()


async def test_what_was_shown_is_told_to_the_process_that_generates(one: RedisStore, empty_redis: str) -> None:
    told: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    two = RedisStore(empty_redis)
    await two.open("two", ignore, on_acknowledged=lambda *each: told.put_nowait(each))
    await two.begin(record())
    for text_end in (3, 0):
        assert await one.tell_acknowledged("r1", text_end)
    assert [await told.get(), await told.get()] == [("r1", 3), ("r1", 0)]
    await two.write(writes("r1", ANSWER))
    assert not await one.tell_acknowledged("r1", 4) and not await one.tell_acknowledged("r2", 4)
    assert told.empty()
    await two.close()


@pytest.mark.usefixtures("gone")
async def test_a_dead_process_is_told_nothing_and_its_response_ends(one: RedisStore) -> None:
    assert not await one.tell_acknowledged("r1", 1)
    await see_that_it_ended_once(one)


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("way", ["response", "events", "follow", "begin", "add", "chain", "cancel", "open", "sweep"])
async def test_whoever_comes_across_it_ends_what_a_dead_server_ran(one: RedisStore, empty_redis: str, way: str) -> None:
    match way:
        case "response":
            await one.response("ada", "r1")
        case "events":
            await one.events("ada", "r1")
        case "follow":
            assert len(await follow_all(one, "r1")) == 2
        case "begin":
            await one.begin(record("r2", conversation="c1"))
            await one.delete_response("ada", "r2")
            await one.delete_item("ada", "c1", "in_r2")
        case "add":
            await one.add_items("ada", "c1", [user("i2")])
            await one.delete_item("ada", "c1", "i2")
        case "chain":
            (found,) = await one.chain("ada", "r1")
            assert found.outcome is not None
        case "cancel":
            await one.ask_cancel("r1")
        case "open":
            other = RedisStore(empty_redis)
            await other.open("other", ignore)
            await other.close()
        case "sweep":
            await one.sweep(0, Retention(None, None))
    await see_that_it_ended_once(one)


@pytest.mark.usefixtures("gone")
async def test_it_is_ended_once_by_all_who_see_it(one: RedisStore, two: RedisStore) -> None:
    await asyncio.gather(
        *(store.follow("ada", "r1", 1) for store in (one, two) for _ in range(5)),
        *(store.response("ada", "r1") for store in (one, two) for _ in range(5)),
    )
    await see_that_it_ended_once(one)


async def test_a_living_servers_response_is_left_alone(one: RedisStore, two: RedisStore) -> None:
    await two.create_conversation(conversation(), [])
    await two.begin(record(conversation="c1"))
    await two.write([Append("r1", 1, said("a"))])
    with pytest.raises(ConversationBusy):
        await one.begin(record("r2", conversation="c1"))
    await one.sweep(0, Retention(None, None))
    await two.write(writes("r1", ANSWER[-1:], before=[said("a")]))


async def test_what_was_reported_survives_being_killed(one: RedisStore, empty_redis: str) -> None:
    for turn in range(2):
        reported = kill_at_random(empty_redis, f"t{turn}_", random.Random())
        await follow_all(one, f"t{turn}_0")
        await see_that_all_is_there(one, reported)


async def test_a_server_that_was_paused_writes_no_more(one: RedisStore, empty_redis: str) -> None:
    with started(empty_redis, "r") as child:
        try:
            assert child.stdout is not None and child.stdout.readline()
            child.send_signal(signal.SIGSTOP)
            *_, last = before = await follow_all(one, "r0")
            assert isinstance(last.event, Failed)
            child.send_signal(signal.SIGCONT)
            *_, refused = child.stdout
        finally:
            child.kill()
    assert refused == "refused: This answer was ended in the store while its server did not respond.\n"
    assert [encode(event) for _, event in await one.events("ada", "r0")] == [encode(event) for _, event in before]


async def test_what_was_begun_under_a_lapsed_lease_does_not_take_what_came_later_with_it(two: RedisStore) -> None:
    journal, logs = Journal(two, Sweeper(two, Retention(None, None))), list[ResponseLog]()
    for n in range(4):
        recording = journal.record(record(f"r{n}"))
        logs.append(ResponseLog(f"r{n}", on_cancel=ignore_cause, on_abandoned=lambda _: None, recorder=recording))
        await recording.begin(logs[-1])
        if n == 1:
            await two._calls.redis.delete(f"causerie:lease:{two._held().name}")
            await two._held().renew()
    for log in (*logs, *logs):
        log.append(said("a"))
    await journal.settle()
    assert [[type(event) for _, event in log.history()] for log in logs] == [[Failed]] * 2 + [[TextDelta] * 2] * 2
    assert [len(await two.events("ada", log.id)) for log in logs] == [1, 1, 2, 2]


def ignore_cause(cause: CancelCause) -> None:
    raise AssertionError(f"nothing was to be cancelled ({cause})")


async def test_a_server_whose_lease_lapsed_goes_on_under_a_new_one(one: RedisStore, two: RedisStore) -> None:
    await two.begin(record("r1"))
    await two.begin(record("r2"))
    await two.write([Append("r2", 1, said("a"))])
    await one._calls.redis.delete(f"causerie:lease:{two._held().name}")
    with pytest.raises(StoreError, match="did not respond"):
        await two.write([Append("r1", 1, said("a"))])
    await answered(two, record("r3"))
    for id_, length in (("r1", 1), ("r2", 2), ("r3", len(ANSWER))):
        assert len(await two.events("ada", id_)) == length
        found = await two.response("ada", id_)
        assert found is not None and found.outcome is not None
