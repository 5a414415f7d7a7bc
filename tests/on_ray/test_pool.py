"""The pool's two halves without Ray between them: who gets what, and what is lost when a replica is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from ray.exceptions import RayError, RayTaskError

from causerie.engines.base import EndReason, Update
from causerie.engines.scripted import ScriptedEngine
from causerie.ray.engine import TRIES, PooledEngine
from causerie.ray.replica import EngineHost
from causerie.types import SamplingParams
from tests.on_ray.pool import Replica, Replicas
from tests.support.service import endless, says, until

ASKED = SamplingParams(max_tokens=40, temperature=0.0)


class Desk:
    def __init__(self, pool: Replicas) -> None:
        host = pool.replicas[0].host
        self.pool = pool
        self.engine = PooledEngine(pool, host.info, most=len(pool.replicas))
        self.updates: list[Update] = []
        self.engine.start(self.updates.extend)

    async def end(self, number: int) -> Update:
        await until(lambda: any(update.sequence == number and update.ended for update in self.updates))
        ends = [update for update in self.updates if update.sequence == number and update.ended]
        assert len(ends) == 1
        return ends[0]

    def said(self, number: int) -> bytes:
        return bytes(id_ for update in self.updates if update.sequence == number for id_ in update.ids if id_ < 256)


@pytest.fixture
async def replicas() -> AsyncIterator[Callable[..., Replicas]]:
    made: list[EngineHost] = []
    starts: list[Replica] = []

    def make(*names: str, script: object = None) -> Replicas:
        for name in names:
            engine = ScriptedEngine(script or says("Hello."), step_seconds=0.002, kv_tokens=4096)  # type: ignore[arg-type]
            host = EngineHost(engine, prefill_piece=32, is_gone=lambda _: False, linger_seconds=0.05)
            made.append(host)
            starts.append(Replica(name, host))
        return Replicas(*starts)

    yield make
    for host in made:
        await host.stop()


async def started(pool: Replicas) -> Desk:
    for replica in pool.replicas:
        await replica.host.start()
    return Desk(pool)


async def test_an_answer_comes_whole_and_ends_once(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a"))
    for number in range(5):
        desk.engine.submit(number, [1, 2, number], ASKED)
    for number in range(5):
        assert (await desk.end(number)).ended is EndReason.STOP
        assert desk.said(number) == b"Hello."
    assert desk.engine.stats().running == 0


async def test_a_cancelled_sequence_frees_its_engine(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", script=endless))
    desk.engine.submit(1, [1], SamplingParams(max_tokens=4000))
    await until(lambda: desk.said(1))
    desk.engine.cancel(1)
    assert (await desk.end(1)).ended is EndReason.CANCELLED
    host = desk.pool.replicas[0].host
    await until(lambda: b"engine_sequences_running 0.0" in host.metrics())


async def test_one_that_is_cancelled_before_it_was_looked_at_ends_too(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a"))
    desk.engine.submit(1, [1, 2], ASKED)
    desk.engine.cancel(1)
    assert (await desk.end(1)).ended is EndReason.CANCELLED
    assert desk.engine.stats().running == 0


async def test_what_was_read_ahead_is_where_the_prompt_is_sent(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", "b"))
    desk.engine.is_there(["a", "b"])
    prompt = list(range(250))
    for number, end in ((1, 64), (2, 128), (3, 224)):
        desk.engine.prefill(number, prompt[:end])
        assert (await desk.end(number)).cached_tokens == (0, 64, 128)[number - 1]
        assert desk.engine.cached(prompt) == end
    desk.engine.submit(4, prompt, ASKED)
    assert (await desk.end(4)).ended is EndReason.STOP
    assert next(update for update in desk.updates if update.sequence == 4 and update.ids).cached_tokens == 224


async def test_nothing_is_read_ahead_while_somebody_waits_at_the_engine_and_it_can_be_left(
    replicas: Callable[..., Replicas],
) -> None:
    desk = await started(replicas("a", script=endless))
    for number in range(3):  # Two of them fill the cache.
        desk.engine.submit(number, [number] * 100, SamplingParams(max_tokens=1900))
    await until(lambda: len({update.sequence for update in desk.updates}) == 2)
    desk.engine.prefill(9, list(range(64)))
    desk.engine.prefill(10, list(range(64)))
    steps = len(desk.updates)
    await until(lambda: len(desk.updates) > steps + 20)
    assert not any(update.sequence in (9, 10) for update in desk.updates)
    desk.engine.cancel(10)
    assert (await desk.end(10)).ended is EndReason.CANCELLED
    await until(lambda: desk.pool.readings[1].ended)
    waiting = ({0, 1, 2} - {update.sequence for update in desk.updates}).pop()
    desk.engine.cancel(waiting)
    assert (await desk.end(9)).ended is EndReason.PREFILLED


async def test_what_is_read_gently_gives_way_and_is_then_read(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", script=endless))
    desk.engine.submit(1, [1], SamplingParams(max_tokens=3000))
    await until(lambda: desk.said(1))
    desk.engine.prefill(2, list(range(32)), gently=True)
    await until(lambda: len(desk.pool.replicas[0].host._engine._sequences) == 2)  # type: ignore[attr-defined]
    desk.engine.submit(3, list(range(1000, 1200)), ASKED)
    assert (await desk.end(3)).ended is EndReason.LENGTH
    assert (await desk.end(2)).ended is EndReason.PREFILLED
    assert [update.sequence for update in desk.updates if update.sequence != 1].index(2) > 0, "3 has spoken before"
    desk.engine.cancel(1)
    await desk.end(1)


async def test_an_engine_that_is_lost_reads_nothing_ahead_and_says_so(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a"))
    desk.pool.replicas[0].dies_after = 0
    desk.engine.prefill(1, list(range(64)))
    assert (await desk.end(1)).ended is EndReason.ERROR
    assert desk.engine.cached(list(range(64))) == 0


async def test_stop_ends_what_runs(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", script=endless))
    for number in range(3):
        desk.engine.submit(number, [number], SamplingParams(max_tokens=4000))
    await until(lambda: desk.said(0))
    await asyncio.to_thread(desk.engine.stop)
    assert [update.ended for update in desk.updates if update.ended] == [EndReason.CANCELLED] * 3


async def test_one_that_had_not_begun_goes_to_another(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", "b"))
    desk.pool.replicas[0].dies_after = 0
    desk.engine.submit(1, [1, 2], ASKED)
    assert (await desk.end(1)).ended is EndReason.STOP
    assert desk.said(1) == b"Hello."
    assert len(desk.pool.replicas[1].served) == 1


async def test_one_that_had_begun_ends_as_failed_and_is_not_generated_again(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", "b"))
    desk.pool.replicas[0].dies_after = 2
    desk.engine.submit(1, [1, 2], ASKED)
    end = await desk.end(1)
    assert end.ended is EndReason.ERROR
    assert "gone" in end.detail
    assert b"Hello.".startswith(desk.said(1))
    assert desk.said(1)
    assert desk.pool.replicas[1].served == []


async def test_all_that_an_engine_had_begun_fail_with_it_and_each_once(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", script=endless))
    for number in range(5):
        desk.engine.submit(number, [number], SamplingParams(max_tokens=700))
    await until(lambda: all(desk.said(number) for number in range(5)))
    desk.pool.replicas[0].die()
    assert {(await desk.end(number)).ended for number in range(5)} == {EndReason.ERROR}
    assert desk.pool.asked == 5


async def test_what_was_in_a_channel_that_is_lost_is_missed_and_said_to_be(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", script=endless))
    desk.engine.submit(1, [1], SamplingParams(max_tokens=4000))
    await until(lambda: desk.said(1))
    desk.pool.replicas[0].channels[0].break_off(RayError())
    assert (await desk.end(1)).ended is EndReason.ERROR
    await until(lambda: b"engine_sequences_running 0.0" in desk.pool.replicas[0].host.metrics())


async def test_nobody_reads_on_in_a_channel_that_is_lost(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", script=endless))
    desk.engine.submit(1, [1], SamplingParams(max_tokens=700))
    await until(lambda: desk.said(1))
    desk.pool.replicas[0].channels[0].break_off(RayError(), deaf=True)
    assert (await desk.end(1)).ended is EndReason.ERROR
    desk.engine.submit(2, [1], SamplingParams(max_tokens=100))
    assert (await desk.end(2)).ended is EndReason.LENGTH
    assert sum(len(update.ids) for update in desk.updates if update.sequence == 2) == 100


async def test_a_channel_ends_when_nothing_runs_and_opens_again(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a"))
    channels = desk.pool.replicas[0].channels
    for number in range(3):
        desk.engine.submit(number, [number], ASKED)
        await desk.end(number)
        assert desk.said(number) == b"Hello."
        await until(lambda: channels[-1].ended)
    assert len(channels) == 3


async def test_a_fault_of_the_engines_own_code_is_not_tried_elsewhere(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", "b"))
    desk.pool.replicas[0].dies_after = 0
    desk.pool.replicas[0].error = RayTaskError("generate", "a traceback", ValueError("no"))  # type: ignore[no-untyped-call]
    desk.engine.submit(1, [1, 2], ASKED)
    assert (await desk.end(1)).ended is EndReason.ERROR
    assert desk.pool.asked == 1


async def test_with_no_engine_left_it_gives_up(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a"))
    desk.pool.replicas[0].dies_after = 0
    desk.engine.submit(1, [1, 2], ASKED)
    assert (await desk.end(1)).ended is EndReason.ERROR
    assert desk.pool.asked == TRIES


async def test_what_continues_a_known_prefix_goes_where_that_is(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", "b"))
    desk.engine.is_there(["a", "b"])
    prompt = list(range(200))
    for number in range(1, 6):
        desk.engine.submit(number, prompt, ASKED)
        await desk.end(number)
        prompt = prompt + list(range(40))
    assert sorted(len(replica.served) for replica in desk.pool.replicas) == [0, 5]


async def test_a_burst_is_spread_evenly_whatever_the_router_would_do(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", "b", "c", script=endless))
    desk.engine.is_there(["a", "b", "c"])
    for number in range(12):
        desk.engine.submit(number, [number], SamplingParams(max_tokens=100))
    for number in range(12):
        await desk.end(number)
    assert [len(replica.served) for replica in desk.pool.replicas] == [4, 4, 4]


async def test_an_engine_that_was_lost_is_asked_last_until_it_is_known_to_be_there(
    replicas: Callable[..., Replicas],
) -> None:
    desk = await started(replicas("a", "b"))
    desk.engine.is_there(["a", "b"])
    dead, other = desk.pool.replicas
    dead.dies_after = 0
    for number in range(8):
        desk.engine.submit(number, [number], ASKED)
        assert (await desk.end(number)).ended is EndReason.STOP
    assert len(other.served) == 8
    assert len(dead.calls) <= 1
    dead.dies_after = None
    desk.engine.is_there(["a", "b"])
    for number in range(8, 16):
        desk.engine.submit(number, [number], ASKED)
    for number in range(8, 16):
        await desk.end(number)
    assert len(dead.served) == 4


async def test_a_host_queues_what_its_cache_cannot_hold_at_once(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a", script=endless))
    for number in range(3):
        desk.engine.submit(number, [1] * 100, SamplingParams(max_tokens=1900))
    await until(lambda: len({update.sequence for update in desk.updates}) == 2)
    assert b"engine_sequences_running 2.0" in desk.pool.replicas[0].host.metrics()
    for number in range(3):
        desk.engine.cancel(number)
        await desk.end(number)


async def test_what_a_process_that_is_gone_had_asked_for_is_cancelled() -> None:
    engine = ScriptedEngine(endless, step_seconds=0.002)
    host = EngineHost(
        engine, prefill_piece=32, is_gone=lambda caller: caller == "gone", check_seconds=0.05, linger_seconds=0.05
    )
    await host.start()

    def ask(caller: str, tokens: int) -> asyncio.Task[None]:
        return asyncio.create_task(host.generate(caller, 1, 1, [1], SamplingParams(max_tokens=tokens)))

    gone, there = ask("gone", 4000), ask("there", 200)
    said = [gain async for gains in host.gains("there", 1) for gain in gains]
    assert said[-1].ended is EndReason.LENGTH
    await asyncio.gather(gone, there)
    await until(lambda: b"engine_sequences_running 0.0" in host.metrics())
    await host.stop()


async def test_what_a_prompts_own_pieces_put_into_the_cache_does_not_count_as_cached(
    replicas: Callable[..., Replicas],
) -> None:
    desk = await started(replicas("a"))
    for number, cached in ((1, 0), (2, 192)):
        desk.engine.submit(number, list(range(200)), ASKED)
        await desk.end(number)
        said = [update for update in desk.updates if update.sequence == number and update.ids]
        assert said[0].cached_tokens == cached
        assert {update.cached_tokens for update in said[1:]} == {None}


async def test_long_prompts_are_read_in_pieces_and_can_be_left_meanwhile(replicas: Callable[..., Replicas]) -> None:
    desk = await started(replicas("a"))
    desk.engine.submit(1, list(range(250)) * 8, ASKED)
    desk.engine.submit(2, list(range(250))[::-1] * 8, ASKED)
    await asyncio.sleep(0.01)
    desk.engine.cancel(2)
    assert (await desk.end(1)).ended is EndReason.STOP
    assert (await desk.end(2)).ended is EndReason.CANCELLED
    await until(lambda: b"engine_sequences_running 0.0" in desk.pool.replicas[0].host.metrics())
