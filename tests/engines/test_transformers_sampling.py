"""Each row of a batch is sampled by its own parameters, and from the distribution that they describe."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from causerie.engines.transformers_sampling import Row, choose
from causerie.types import SamplingParams

PLAIN = SamplingParams(max_tokens=100)
LOGITS = [2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -4.0]


def distribution(logits: list[float], sampling: SamplingParams) -> dict[int, float]:
    """What the docs of vLLM say, in plain arithmetic: temperature, min_p, top_k, top_p."""
    weights = {id_: math.exp((logit - max(logits)) / sampling.temperature) for id_, logit in enumerate(logits)}
    weights = {id_: weight for id_, weight in weights.items() if weight >= sampling.min_p * max(weights.values())}
    ranked = sorted(weights, key=lambda id_: -weights[id_])[: sampling.top_k or None]
    total, before, kept = sum(weights[id_] for id_ in ranked), 0.0, {}
    for id_ in ranked:
        if before < sampling.top_p * total:
            kept[id_] = weights[id_]
        before += weights[id_]
    return {id_: weight / sum(kept.values()) for id_, weight in kept.items()}


def draw(sampling: SamplingParams, times: int, logits: list[float] = LOGITS) -> Counter[int]:
    """First ids of ``times`` rows of one batch, each with its own seed."""
    rows = [Row(replace(sampling, seed=seed), [], frozenset()) for seed in range(times)]
    return Counter(choose(torch.tensor([logits] * times), rows)[0])


def test_rows_of_one_batch_follow_their_own_distributions() -> None:
    samplings = [
        replace(PLAIN, temperature=0.5),
        replace(PLAIN, temperature=2.0, top_k=3),
        replace(PLAIN, top_p=0.7),
        replace(PLAIN, min_p=0.3),
        replace(PLAIN, temperature=1.5, min_p=0.1, top_k=5, top_p=0.9),
        PLAIN,
    ]
    times = 1500
    rows = [Row(replace(sampling, seed=seed), [], frozenset()) for seed in range(times) for sampling in samplings]
    ids, _ = choose(torch.tensor([LOGITS] * len(rows)), rows)
    for place, sampling in enumerate(samplings):
        count = Counter(ids[place :: len(samplings)])
        expected = distribution(LOGITS, sampling)
        assert set(count) <= set(expected)
        for id_, share in expected.items():
            # five standard deviations, and the seeds are fixed
            assert abs(count[id_] - share * times) < 5 * math.sqrt(share * times) + 1


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12, unique=True),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 15),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
def test_nothing_outside_the_described_set_is_ever_drawn(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    loose = replace(PLAIN, temperature=temperature, top_k=top_k, min_p=min_p * 0.999, top_p=min(1.0, top_p * 1.001))
    strict = replace(loose, min_p=min_p, top_p=top_p)
    least = min(logits[id_] for id_ in distribution(logits, loose))
    # Which of several equals is last in is anyone's choice.
    allowed = {id_ for id_, logit in enumerate(logits) if logit >= least - 1e-5}
    assert set(draw(strict, 20, logits)) <= allowed


def test_temperature_zero_and_tiny_are_greedy_and_a_huge_one_is_uniform() -> None:
    assert set(draw(replace(PLAIN, temperature=0.0), 100)) == {0}
    assert set(draw(replace(PLAIN, temperature=1e-12), 100)) == {0}
    huge = draw(replace(PLAIN, temperature=1e12), 800)
    assert len(huge) == len(LOGITS) and min(huge.values()) > 50


def test_same_seed_same_ids_and_no_seed_differs() -> None:
    logits = [0.0] * 1000

    def forty(seed: int | None) -> list[int]:
        row = Row(replace(PLAIN, seed=seed), [], frozenset())
        return [choose(torch.tensor([logits]), [row])[0][0] for _ in range(40)]

    assert forty(7) == forty(7)
    assert len({tuple(forty(seed)) for seed in (7, 8, None, None)}) == 4


def test_penalties_see_what_they_should() -> None:
    greedy = replace(PLAIN, temperature=0.0)
    prompt = [0, 1]
    rows = [
        Row(replace(greedy, repetition_penalty=100.0), prompt, frozenset()),
        Row(replace(greedy, presence_penalty=0.7), prompt, frozenset()),
        Row(replace(greedy, frequency_penalty=0.3), prompt, frozenset()),
    ]
    said = [choose(torch.tensor([LOGITS] * 3), rows)[0] for _ in range(4)]
    # Repetition counts the prompt, too, and once only; presence and frequency count what was said.
    assert [step[0] for step in said] == [2, 3, 0, 0]
    assert [step[1] for step in said] == [0, 1, 0, 0]
    assert [step[2] for step in said] == [0, 0, 1, 0]


def test_min_tokens_forbids_the_stops_until_then() -> None:
    row = Row(replace(PLAIN, temperature=0.0, min_tokens=2), [], frozenset({0, 1}))
    assert [choose(torch.tensor([LOGITS]), [row])[0][0] for _ in range(3)] == [2, 2, 0]


def test_logits_that_are_no_numbers_raise() -> None:
    row = Row(PLAIN, [], frozenset())
    with pytest.raises(FloatingPointError):
        choose(torch.tensor([[0.0, math.nan, 1.0]]), [row])


extremes = st.sampled_from([0.0, -math.inf, 1e-38, 88.0, -3e38, 3e38]) | st.floats(-(2.0**127), 2.0**127, width=32)


@settings(deadline=None, max_examples=300)
@given(
    logits=st.lists(extremes, min_size=3, max_size=3).filter(lambda logits: max(logits) > -math.inf),
    sampling=st.builds(
        SamplingParams,
        max_tokens=st.just(100),
        temperature=st.floats(1e-5, 2),
        top_p=st.floats(1e-6, 1),
        top_k=st.integers(0, 4),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.01, 10),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        seed=st.integers(0, 9),
        min_tokens=st.integers(0, 2),
    ),
    stops=st.frozensets(st.integers(0, 2)),
)
@example([2.0, 1.0, -1.0], replace(PLAIN, repetition_penalty=1e-38), frozenset())
@example([2.0, 1.0, -1.0], replace(PLAIN, presence_penalty=-1e38, frequency_penalty=-1e38), frozenset())
@example([2.0, 1.0, -1.0], replace(PLAIN, min_tokens=2), frozenset({0, 1, 2}))
@example([2.0, -math.inf, -math.inf], replace(PLAIN, min_tokens=2), frozenset({0}))
def test_no_parameter_leads_out_of_the_vocabulary(
    logits: list[float], sampling: SamplingParams, stops: frozenset[int]
) -> None:
    row, bystander = Row(sampling, [0, 1, 2], stops), Row(replace(PLAIN, seed=1), [], frozenset())
    for _ in range(4):
        ids, _ = choose(torch.tensor([logits, [0.0, 1.0, 2.0]]), [row, bystander])
        assert all(0 <= id_ < 3 for id_ in ids)
