"""The scripted engine keeps the contract, and its script's word."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from causerie.engines.base import EndReason, Engine
from causerie.engines.scripted import IM_END, IM_START, OutOfBlocks, ScriptedEngine, echo
from causerie.types import SamplingParams
from tests.engines.conformance import EngineConformance, Recorder


class TestConformance(EngineConformance):
    @pytest.fixture
    def new_engine(self) -> Callable[[], Engine]:
        return lambda: ScriptedEngine(lambda _: itertools.cycle(range(97, 123)), step_seconds=0.001)

    @pytest.fixture
    def prompt(self) -> list[int]:
        return list(range(32, 122))


def run(engine: ScriptedEngine, sampling: SamplingParams) -> tuple[list[EndReason], list[int]]:
    recorder = Recorder()
    engine.start(recorder)
    engine.submit(1, [65], sampling)
    recorder.wait_ended(1)
    engine.stop()
    return recorder.ends(1), recorder.ids(1)


def test_ends_with_its_end_of_text_when_the_script_does() -> None:
    assert run(ScriptedEngine(lambda _: b"ab"), SamplingParams(9)) == ([EndReason.STOP], [97, 98, IM_END])


def test_goes_on_past_the_end_of_text_where_it_is_ignored() -> None:
    found = run(ScriptedEngine(lambda _: b"ab"), SamplingParams(5, ignore_eos=True))
    assert found == ([EndReason.LENGTH], [97, 98, IM_END, 97, 98])


@pytest.mark.parametrize("script", [b"", b"ab"])
def test_min_tokens_hold_without_an_early_end_of_text(script: bytes) -> None:
    ends, ids = run(ScriptedEngine(lambda _: script), SamplingParams(9, min_tokens=5))
    assert ends == [EndReason.STOP]
    assert ids.index(IM_END) >= 5


def test_a_script_that_runs_out_of_blocks_is_a_failure() -> None:
    def script(_: object) -> list[int]:
        raise OutOfBlocks

    assert run(ScriptedEngine(script), SamplingParams(9)) == ([EndReason.OUT_OF_MEMORY], [])


def test_echo_says_the_last_users_turn_back() -> None:
    turn = [IM_START, *b"user\nfirst", IM_END, IM_START, *b"assistant\nx", IM_END, IM_START, *b"user\nlast", IM_END]
    assert bytes(echo([*turn, IM_START, *b"assistant\n"])).startswith(b"You said: last.")
