"""What holds of every ``Engine``: subclass ``EngineConformance`` in a test module and give it two fixtures.

``new_engine`` makes an engine that has not been started, and whose sequences of ``ignore_eos`` run for at least a
tenth of a second before they fill the context window. ``prompt`` is 70 ids of its vocabulary or more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from causerie.engines.base import EndReason, Engine, Update
from causerie.types import SamplingParams, TokenLogprob

TIMEOUT = 60.0
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


class Recorder:
    """A ``deliver`` that keeps what came and lets a test wait for it."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.threads: set[threading.Thread] = set()
        self._condition = threading.Condition()

    def __call__(self, updates: Sequence[Update]) -> None:
        with self._condition:
            self.updates.extend(updates)
            self.threads.add(threading.current_thread())
            self._condition.notify_all()

    def of(self, sequence: int) -> list[Update]:
        return [update for update in list(self.updates) if update.sequence == sequence]

    def ids(self, sequence: int) -> list[int]:
        return [id_ for update in self.of(sequence) for id_ in update.ids]

    def logprobs(self, sequence: int) -> list[TokenLogprob]:
        return [logprob for update in self.of(sequence) for logprob in update.logprobs]

    def ends(self, sequence: int) -> list[EndReason]:
        return [update.ended for update in self.of(sequence) if update.ended is not None]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._condition:
            assert self._condition.wait_for(condition, TIMEOUT), f"not delivered in time: {self.updates[-5:]}"

    def wait_ended(self, *sequences: int) -> None:
        self.wait(lambda: all(self.ends(sequence) for sequence in sequences))

    def check(self, *sequences: int) -> None:
        """Each ended exactly once, and nothing came after that."""
        for sequence in sequences:
            assert [update.ended is not None for update in self.of(sequence)].count(True) == 1
            assert self.of(sequence)[-1].ended is not None


class EngineConformance:
    @pytest.fixture
    def new_engine(self) -> Callable[[], Engine]:
        raise NotImplementedError

    @pytest.fixture
    def prompt(self) -> list[int]:
        raise NotImplementedError

    @pytest.fixture
    def recorder(self) -> Recorder:
        return Recorder()

    @pytest.fixture
    def engine(self, new_engine: Callable[[], Engine], recorder: Recorder) -> Iterator[Engine]:
        engine = new_engine()
        engine.start(recorder)
        yield engine
        engine.stop()

    def endless(self, engine: Engine, prompt: Sequence[int]) -> SamplingParams:
        return replace(GREEDY, max_tokens=engine.info.context_window - len(prompt))

    def needs(self, engine: Engine, *parameters: str) -> None:
        assert set(parameters) <= engine.info.parameters

    def test_info_is_known_before_start(self, new_engine: Callable[[], Engine]) -> None:
        info = new_engine().info
        assert info.context_window > 0
        assert info.kv_tokens > 0
        assert info.max_sequences > 0
        assert info.parameters <= set(SamplingParams.__dataclass_fields__)

    def test_every_sequence_ends_once_with_its_own_length(
        self, engine: Engine, recorder: Recorder, prompt: list[int]
    ) -> None:
        lengths = {number: 1 + 3 * number for number in range(6)}
        for number, length in lengths.items():
            engine.submit(number, prompt[: 20 + number], replace(GREEDY, max_tokens=length))
        recorder.wait_ended(*lengths)
        recorder.check(*lengths)
        assert {number: len(recorder.ids(number)) for number in lengths} == lengths
        assert all(recorder.ends(number) == [EndReason.LENGTH] for number in lengths)
        assert engine.stats().running == 0

    def test_delivers_on_one_thread_of_its_own(self, engine: Engine, recorder: Recorder, prompt: list[int]) -> None:
        engine.submit(1, prompt, GREEDY)
        engine.submit(2, prompt, GREEDY)
        engine.cancel(2)
        recorder.wait_ended(1, 2)
        assert len(recorder.threads) == 1
        assert threading.current_thread() not in recorder.threads

    def test_cancel_while_running_leaves_the_neighbour_alone(
        self, engine: Engine, recorder: Recorder, prompt: list[int]
    ) -> None:
        engine.submit(1, prompt, self.endless(engine, prompt))
        engine.submit(2, prompt[1:], replace(GREEDY, max_tokens=30))
        recorder.wait(lambda: len(recorder.ids(1)) > 1)
        assert engine.stats().running >= 1
        engine.cancel(1)
        recorder.wait_ended(1, 2)
        recorder.check(1, 2)
        assert recorder.ends(1) == [EndReason.CANCELLED]
        assert recorder.ends(2) == [EndReason.LENGTH]
        assert len(recorder.ids(2)) == 30

    def test_cancel_before_it_ran(self, engine: Engine, recorder: Recorder, prompt: list[int]) -> None:
        engine.submit(1, prompt, self.endless(engine, prompt))
        engine.cancel(1)
        recorder.wait_ended(1)
        recorder.check(1)
        assert recorder.ends(1) == [EndReason.CANCELLED]

    def test_cancel_again_and_after_the_end_and_of_a_stranger_is_ignored(
        self, engine: Engine, recorder: Recorder, prompt: list[int]
    ) -> None:
        engine.cancel(99)
        engine.submit(1, prompt, self.endless(engine, prompt))
        engine.cancel(1)
        engine.cancel(1)
        engine.submit(2, prompt, GREEDY)
        recorder.wait_ended(1, 2)
        engine.cancel(1)
        engine.cancel(2)
        engine.submit(3, prompt, GREEDY)
        recorder.wait_ended(3)
        recorder.check(1, 2, 3)
        assert not recorder.of(99)
        assert recorder.ends(2) == [EndReason.LENGTH]

    def test_prefill_ends_without_ids_and_is_reused(
        self, engine: Engine, recorder: Recorder, prompt: list[int]
    ) -> None:
        engine.submit(1, prompt, GREEDY)
        recorder.wait_ended(1)
        other = prompt[::-1]
        half = len(other) // 2
        engine.prefill(2, other[:half])
        recorder.wait_ended(2)
        engine.prefill(3, other)
        recorder.wait_ended(3)
        engine.submit(4, other, GREEDY)
        recorder.wait_ended(4)
        recorder.check(2, 3, 4)
        assert recorder.ends(2) == recorder.ends(3) == [EndReason.PREFILLED]
        assert not recorder.ids(2) and not recorder.ids(3)
        cached = recorder.of(4)[0].cached_tokens
        block = engine.info.prefix_block
        if cached is not None and block:
            assert cached >= (len(other) - 1) // block * block
        assert cached is None or cached < len(other)

    def test_cancel_of_a_prefill(self, engine: Engine, recorder: Recorder, prompt: list[int]) -> None:
        engine.prefill(1, prompt)
        engine.cancel(1)
        recorder.wait_ended(1)
        recorder.check(1)
        assert recorder.ends(1) in ([EndReason.CANCELLED], [EndReason.PREFILLED])

    def test_stop_ends_everything_as_cancelled_and_leaves_no_thread(
        self, new_engine: Callable[[], Engine], recorder: Recorder, prompt: list[int]
    ) -> None:
        before = set(threading.enumerate())
        engine = new_engine()
        engine.start(recorder)
        for number in range(4):
            engine.submit(number, prompt[number:], self.endless(engine, prompt))
        recorder.wait(lambda: bool(recorder.ids(0)))
        engine.submit(4, prompt, self.endless(engine, prompt))
        engine.stop()
        delivered = len(recorder.updates)
        engine.stop()
        recorder.check(*range(5))
        assert all(recorder.ends(number) == [EndReason.CANCELLED] for number in range(5))
        assert set(threading.enumerate()) <= before
        assert len(recorder.updates) == delivered

    def test_stop_token_ends_with_that_token_last(self, engine: Engine, recorder: Recorder, prompt: list[int]) -> None:
        self.needs(engine, "stop_token_ids")
        engine.submit(1, prompt, GREEDY)
        recorder.wait_ended(1)
        stop = recorder.ids(1)[3]
        engine.submit(2, prompt, replace(GREEDY, stop_token_ids=frozenset({stop})))
        recorder.wait_ended(2)
        assert recorder.ends(2) == [EndReason.STOP]
        assert recorder.ids(2)[-1] == stop
        assert recorder.ids(2).count(stop) == 1

    def test_min_tokens_holds_the_stop_back(self, engine: Engine, recorder: Recorder, prompt: list[int]) -> None:
        self.needs(engine, "stop_token_ids", "min_tokens")
        engine.submit(1, prompt, GREEDY)
        recorder.wait_ended(1)
        stop = frozenset(recorder.ids(1)[:1])
        engine.submit(2, prompt, replace(GREEDY, stop_token_ids=stop, min_tokens=5))
        recorder.wait_ended(2)
        assert len(recorder.ids(2)) >= 5

    def test_seed_repeats_whatever_runs_beside_it(self, engine: Engine, recorder: Recorder, prompt: list[int]) -> None:
        self.needs(engine, "seed")
        sampled = replace(GREEDY, temperature=1.0, seed=7, max_tokens=16)
        engine.submit(1, prompt, sampled)
        recorder.wait_ended(1)
        engine.submit(2, prompt, sampled)
        recorder.wait_ended(2)
        assert recorder.ids(1) == recorder.ids(2)

    def test_logprobs_come_one_for_each_id_where_asked_for(
        self, engine: Engine, recorder: Recorder, prompt: list[int]
    ) -> None:
        self.needs(engine, "logprobs")
        engine.submit(1, prompt, replace(GREEDY, logprobs=0))
        engine.submit(2, prompt, GREEDY)
        most = engine.info.top_logprobs
        engine.submit(3, prompt, replace(GREEDY, logprobs=most))
        recorder.wait_ended(1, 2, 3)
        assert [logprob.id for logprob in recorder.logprobs(1)] == recorder.ids(1)
        assert all(logprob.logprob <= 0.0 for logprob in recorder.logprobs(1))
        assert not recorder.logprobs(2)
        for logprob in recorder.logprobs(3):
            values = [value for _, value in logprob.top]
            assert len(values) == most
            assert values == sorted(values, reverse=True)
