"""OpenVINO on the real default model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from causerie.chat.build import engine_config
from causerie.config import Settings
from causerie.engines.base import EndReason, Engine, Update
from causerie.engines.openvino import BLOCK, OpenVINOEngine
from causerie.engines.stepping import Cancel, Command, Submit
from causerie.models.folder import ModelFolder
from causerie.models.precision import PRECISIONS
from causerie.text.model import TextModel
from causerie.types import SamplingParams, TokenLogprob
from tests.engines.conformance import EngineConformance, Recorder

pytestmark = pytest.mark.model

GREEDY = SamplingParams(max_tokens=10, temperature=0.0)


class Table:
    """A started engine and what it delivered."""

    def __init__(self, engine: OpenVINOEngine) -> None:
        self.engine: OpenVINOEngine = engine
        self.recorder = Recorder()
        engine.start(self.recorder)

    def result(self, number: int) -> tuple[EndReason, list[int]]:
        self.recorder.wait_ended(number)
        self.recorder.check(number)
        return self.recorder.ends(number)[0], self.recorder.ids(number)


MakeTable = Callable[[int], Table]


def openvino(folder: ModelFolder, blocks: int, text: TextModel | None = None) -> OpenVINOEngine:
    """An engine with a KV cache of at least so many blocks, and hardly more."""
    precision = PRECISIONS["balanced"]
    wanted = blocks * BLOCK * folder.kv_bytes_per_token
    for share in (0.25, 0.5, 0.5625, 1.0, 2.0):
        settings = Settings(kv_cache_gib=wanted * share * 1.01 / 2**30, max_batch_size=64)
        engine = OpenVINOEngine(
            engine_config(folder, settings, text), prompt_tokens_per_step=256, properties=precision.properties
        )
        if engine.info.kv_tokens >= blocks * BLOCK:
            break
    return engine


@pytest.fixture
def table(default_folder: ModelFolder) -> Iterator[MakeTable]:
    tables: list[Table] = []

    def make(blocks: int) -> Table:
        tables.append(Table(openvino(default_folder, blocks)))
        return tables[-1]

    yield make
    for made in tables:
        made.engine.stop()


def ids(number: int, length: int = 40) -> list[int]:
    """Distinct ordinary ids."""
    return [1000 + (number * 7919 + index * 104729) % 40000 for index in range(length)]


class TestConformance(EngineConformance):
    @pytest.fixture
    def new_engine(self, default_folder: ModelFolder) -> Callable[[], Engine]:
        return lambda: openvino(default_folder, 1024)

    @pytest.fixture
    def prompt(self) -> list[int]:
        return ids(3, 90)


def test_a_cache_of_a_few_blocks_and_sixteen_streams_ends_every_one_truthfully(table: MakeTable) -> None:
    desk = table(8)
    for number in range(16):
        desk.engine.submit(number, ids(number), SamplingParams(max_tokens=300, temperature=0.0, ignore_eos=True))
    for number in range(16):
        ended, said = desk.result(number)
        # 40 + 300 tokens can never fit into 8 blocks of 32: nobody may be told that it finished.
        assert ended is EndReason.OUT_OF_MEMORY
        assert len(said) < 300
    assert any(desk.recorder.ids(number) for number in range(16))
    desk.engine.submit(99, ids(99), GREEDY)
    assert desk.result(99)[0] is EndReason.LENGTH


def test_a_prompt_larger_than_the_cache_is_out_of_memory_and_the_engine_lives(table: MakeTable) -> None:
    desk = table(8)
    desk.engine.submit(1, ids(1, 400), GREEDY)
    assert desk.result(1) == (EndReason.OUT_OF_MEMORY, [])
    desk.engine.submit(2, ids(2), GREEDY)
    assert len(desk.result(2)[1]) == 10


def test_requests_without_a_seed_do_not_all_sample_the_same(table: MakeTable) -> None:
    desk = table(256)
    for number in range(4):
        desk.engine.submit(number, ids(0), SamplingParams(max_tokens=12, temperature=1.5))
    assert len({tuple(desk.result(number)[1]) for number in range(4)}) > 1


def test_stop_ids_hold_also_for_one_that_ignores_the_end_of_text(table: MakeTable) -> None:
    desk = table(256)
    desk.engine.submit(1, ids(0), SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True))
    _, plain = desk.result(1)
    stop = plain[4]
    sampling = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, stop_token_ids=frozenset({stop}))
    desk.engine.submit(2, ids(0), sampling)
    assert desk.result(2) == (EndReason.STOP, plain[: plain.index(stop) + 1])


def test_a_prefilled_prompt_is_answered_as_one_that_was_not(table: MakeTable) -> None:
    desk = table(256)
    desk.engine.submit(1, ids(0, 200), GREEDY)
    cold = desk.result(1)
    for number, length in ((2, 64), (3, 128), (4, 192)):
        desk.engine.prefill(number, ids(5, length))
        assert desk.result(number) == (EndReason.PREFILLED, [])
    desk.engine.submit(5, ids(5, 200), GREEDY)
    assert desk.result(5)[0] is cold[0]
    assert len(desk.result(5)[1]) == len(cold[1])


def kill_runtime(engine: OpenVINOEngine) -> int:
    pid = engine.runtime_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_runtime_that_is_killed_ends_its_streams_as_failed_and_the_next_one_is_answered(table: MakeTable) -> None:
    desk = table(256)
    endless = SamplingParams(max_tokens=4000, temperature=0.0, ignore_eos=True)
    for number in (1, 2):
        desk.engine.submit(number, ids(number), endless)
    desk.recorder.wait(lambda: all(len(desk.recorder.ids(number)) > 2 for number in (1, 2)))
    killed = kill_runtime(desk.engine)
    for number in (1, 2):
        assert desk.result(number)[0] is EndReason.ERROR
        assert "Try again" in desk.recorder.of(number)[-1].detail
    desk.engine.submit(3, ids(3), GREEDY)
    assert desk.result(3)[0] is EndReason.LENGTH
    assert desk.engine.runtime_pid != killed


def test_a_runtime_that_is_killed_while_it_has_nothing_to_do_costs_nobody_an_answer(table: MakeTable) -> None:
    desk = table(256)
    desk.engine.submit(1, ids(1), GREEDY)
    said = desk.result(1)
    kill_runtime(desk.engine)
    desk.engine.submit(2, ids(1), GREEDY)
    assert desk.result(2) == said


def test_while_a_step_computes_the_interpreter_is_free(table: MakeTable) -> None:
    desk = table(256)
    desk.engine.submit(1, ids(1, 2000), GREEDY)
    longest = 0.0
    begin = last = time.monotonic()
    while not desk.recorder.ids(1):
        time.sleep(0.002)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    # The prompt is read in one step, which keeps the lock of the process that computes it.
    assert longest < (last - begin) / 2


class Hand:
    """An engine whose steps the test takes itself, so that it decides what comes between which."""

    def __init__(self, folder: ModelFolder, blocks: int = 256, text: TextModel | None = None) -> None:
        self.engine = openvino(folder, blocks, text)
        self.engine._open()
        self.said: dict[int, list[Update]] = {}

    def step(self, *commands: Command) -> None:
        for update in self.engine._advance(list(commands)):
            self.said.setdefault(update.sequence, []).append(update)

    def ids(self, number: int) -> list[int]:
        return [id_ for update in self.said[number] for id_ in update.ids]

    def first(self, number: int) -> TokenLogprob:
        while number not in self.said:
            self.step()
        return self.said[number][0].logprobs[0]


def test_what_had_not_begun_when_the_runtime_died_is_generated_by_the_next_but_not_tried_for_ever(
    default_folder: ModelFolder,
) -> None:
    hand = Hand(default_folder)
    killed = kill_runtime(hand.engine)
    hand.step(Submit(1, ids(1), GREEDY), Submit(2, ids(2), GREEDY))
    assert hand.said == {}
    assert hand.engine.runtime_pid not in {None, killed}
    hand.step(Cancel(2))
    assert len(hand.ids(1)) == 1
    kill_runtime(hand.engine)
    hand.step(Submit(3, ids(3), GREEDY))
    kill_runtime(hand.engine)
    hand.step()
    assert [hand.said[number][-1].ended for number in (1, 2, 3)] == [
        EndReason.ERROR,
        EndReason.CANCELLED,
        EndReason.ERROR,
    ]
    hand.engine._close()


@pytest.mark.parametrize("end", ["by its limit", "by a cancel before", "by a cancel in the same gap"])
def test_two_that_branch_inside_a_cached_block_do_not_read_each_others_words(
    default_folder: ModelFolder, end: str
) -> None:
    hand, quiet = Hand(default_folder), Hand(default_folder)
    hand.step(Submit(1, ids(0), SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)))
    while len(hand.ids(1)) < (4 if end == "by its limit" else 3):
        hand.step()
    between: list[Command] = [Cancel(1)] if end == "by a cancel in the same gap" else []
    if end == "by a cancel before":
        hand.step(Cancel(1))
    stem = ids(0) + hand.ids(1)[:-1]
    asked = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=0)
    branches = [Submit(2, stem + ids(8, 5), asked), Submit(3, stem + ids(9, 5), asked)]
    hand.step(*between, *branches)
    for branch in branches:
        quiet.step(branch)
        # The first token only: later ones go their own way once a batch's arithmetic flips one.
        alone, found = quiet.first(branch.sequence), hand.first(branch.sequence)
        assert found.id == alone.id
        assert found.logprob == pytest.approx(alone.logprob, abs=0.15)
    for used in (hand, quiet):
        used.engine._abandon()
        used.engine._close()


def test_a_prompt_cancelled_while_it_is_read_leaves_no_half_read_blocks_behind(table: MakeTable) -> None:
    sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=0)
    quiet = table(256)
    quiet.engine.submit(1, ids(2, 300), sampling)
    quiet.recorder.wait_ended(1)
    (clean, *_) = quiet.recorder.logprobs(1)
    desk = table(256)
    desk.engine.submit(1, ids(9), SamplingParams(max_tokens=2000, temperature=0.0, ignore_eos=True))
    desk.recorder.wait(lambda: len(desk.recorder.ids(1)) > 3)
    with desk.engine._condition:  # More than a step reads, beside a running sequence.
        desk.engine.submit(2, ids(1, 200), sampling)
        desk.engine.submit(3, ids(2, 300), sampling)
    steps = desk.engine.stats().steps
    desk.recorder.wait(lambda: desk.engine.stats().steps > steps)
    desk.engine.cancel(3)
    desk.result(3)
    desk.engine.submit(4, ids(2, 300), sampling)
    desk.result(4)
    (again, *_) = desk.recorder.logprobs(4)
    assert again.id == clean.id
    assert again.logprob == pytest.approx(clean.logprob, abs=0.15)
