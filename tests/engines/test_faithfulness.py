"""The default engine computes what the model's file says: compared with float32 transformers on the same weights.

A small form of ``python -m benchmarks.precision``, which also measures speed and every other option.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from benchmarks import prompts
from benchmarks.precision import LEAST_TOP1, MOST_DELTA
from benchmarks.reference import Reference

from causerie.chat.build import openvino_engine
from causerie.config import Settings
from causerie.engines.base import EndReason, Engine, Update
from causerie.models.cache import cache_root
from causerie.models.default import fetch_default
from causerie.models.folder import ModelFolder
from causerie.models.precision import PRECISIONS
from causerie.models.progress import Silent
from causerie.models.resolve import resolve
from causerie.text.model import TextModel
from causerie.types import SamplingParams, TextPrompt, TokenLogprob

pytestmark = [pytest.mark.model, pytest.mark.slow]

_GIVEN = 8
"""Tokens of a text that are given; from there on every position is compared."""


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    settings = Settings()
    return resolve(settings.model, form=PRECISIONS[settings.precision].form, engine="openvino")


@pytest.fixture(scope="module")
def passages(folder: ModelFolder) -> list[list[int]]:
    text = TextModel.load(folder.path, eos_token_ids=folder.eos_token_ids, bos_token_id=folder.bos_token_id)
    return [text.encode(TextPrompt(passage)) for passage in prompts.PASSAGES[:4]]


class Collector:
    """Gathers what the engine delivers; ``wait`` returns when everything has ended."""

    def __init__(self, expected: int) -> None:
        self.logprobs: dict[int, TokenLogprob] = {}
        self.ends: dict[int, EndReason] = {}
        self._expected = expected
        self._done = threading.Event()

    def deliver(self, updates: Sequence[Update]) -> None:
        for update in updates:
            for logprob in update.logprobs:
                self.logprobs[update.sequence] = logprob
            if update.ended is not None:
                self.ends[update.sequence] = update.ended
        if len(self.ends) == self._expected:
            self._done.set()

    def wait(self) -> None:
        assert self._done.wait(60), f"{len(self.ends)} of {self._expected} sequences ended"


@pytest.fixture
def engine(folder: ModelFolder) -> Iterator[Engine]:
    engine = openvino_engine(folder, Settings())
    yield engine
    engine.stop()


def test_default_engine_agrees_with_float32_transformers(engine: Engine, passages: list[list[int]]) -> None:
    prefixes = [ids[:end] for ids in passages for end in range(_GIVEN, len(ids))]
    collector = Collector(len(prefixes))
    engine.start(collector.deliver)
    greedy = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=0)
    for number, prefix in enumerate(prefixes):
        engine.submit(number, prefix, greedy)
    collector.wait()
    assert set(collector.ends.values()) == {EndReason.LENGTH}

    reference = Reference(fetch_default(cache_root(), Silent()))
    truth = np.concatenate([reference.log_probabilities(ids[:_GIVEN], ids[_GIVEN:]) for ids in passages])
    chosen = [collector.logprobs[number] for number in range(len(prefixes))]
    top1 = np.mean([row.argmax() == token.id for row, token in zip(truth, chosen, strict=True)])
    delta = np.mean([abs(row[token.id] - token.logprob) for row, token in zip(truth, chosen, strict=True)])
    assert top1 >= LEAST_TOP1
    assert delta <= MOST_DELTA
