"""The engines' thread: what fails ends, what comes after works, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from causerie.engines.base import EndReason, EngineInfo, EngineStats, Update
from causerie.engines.stepping import Cancel, Command, SteppingEngine, Submit
from causerie.errors import ModelUnavailable
from causerie.types import SamplingParams
from tests.engines.conformance import Recorder

GREEDY = SamplingParams(max_tokens=3, temperature=0.0)


class Fragile(SteppingEngine):
    """Says one id per sequence and ends; fails at whatever ``fails`` names, once each time it is named."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: list[str] = []
        self.opened = 0
        self.sequences: list[int] = []

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("fragile", 100, 100, 8, frozenset())

    def _may_fail(self, where: str) -> None:
        if where in self.fails:
            self.fails.remove(where)
            raise RuntimeError(f"failed at {where}")

    def _open(self) -> None:
        self._may_fail("open")
        self.opened += 1

    def _apply(self, command: Command) -> list[Update]:
        match command:
            case Submit(number):
                self.sequences.append(number)
                self._may_fail("apply")
            case Cancel():
                pass
        return []

    def _busy(self) -> bool:
        return bool(self.sequences)

    def _step(self, updates: list[Update]) -> None:
        self._may_fail("step")
        for number in self.sequences:
            updates.append(Update(number, [7], ended=EndReason.STOP))
            self._may_fail("within")
        self.sequences = []

    def _abandon(self) -> list[int]:
        lost, self.sequences = self.sequences, []
        return lost

    def cached(self, prompt: object) -> int:
        return 0

    def stats(self) -> EngineStats:
        return EngineStats(len(self.sequences), 0.0, self._steps)


@pytest.fixture
def engine() -> Iterator[tuple[Fragile, Recorder]]:
    engine, recorder = Fragile(), Recorder()
    engine.start(recorder)
    yield engine, recorder
    engine.stop()


def end(engine: Fragile, recorder: Recorder, number: int) -> EndReason:
    engine.submit(number, [1], GREEDY)
    recorder.wait_ended(number)
    recorder.check(number)
    return recorder.ends(number)[0]


@pytest.mark.parametrize("where", ["apply", "step"])
def test_a_failure_ends_what_it_met_and_the_next_request_is_answered(
    engine: tuple[Fragile, Recorder], where: str
) -> None:
    fragile, recorder = engine
    fragile.fails = [where]
    assert end(fragile, recorder, 1) is EndReason.ERROR
    assert "failed" in recorder.of(1)[-1].detail
    assert where not in recorder.of(1)[-1].detail.split()
    assert end(fragile, recorder, 2) is EndReason.STOP
    assert fragile.opened == 2


def test_what_a_failing_step_had_told_stands(engine: tuple[Fragile, Recorder]) -> None:
    fragile, recorder = engine
    fragile.fails = ["within"]
    with fragile._condition:
        fragile.submit(1, [1], GREEDY)
        fragile.submit(2, [1], GREEDY)
    recorder.wait_ended(1, 2)
    recorder.check(1, 2)
    assert (recorder.ends(1), recorder.ends(2)) == ([EndReason.STOP], [EndReason.ERROR])


def test_an_engine_that_cannot_be_opened_again_fails_each_request_until_it_can(
    engine: tuple[Fragile, Recorder],
) -> None:
    fragile, recorder = engine
    fragile.fails = ["step", "open", "open"]
    assert [end(fragile, recorder, number) for number in (1, 2, 3)] == [EndReason.ERROR] * 3
    assert end(fragile, recorder, 4) is EndReason.STOP


def test_an_engine_that_cannot_be_opened_at_all_says_so_at_start() -> None:
    class Absent(Fragile):
        def _open(self) -> None:
            raise ModelUnavailable("no weights")

    with pytest.raises(ModelUnavailable, match="no weights"):
        Absent().start(Recorder())
