"""Who may not be added to OpenVINO's runtime together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from causerie.engines.openvino_open_ends import OpenEnds

BLOCK = 4


def test_two_that_continue_an_ended_sequence_inside_its_last_block_take_turns() -> None:
    ends = OpenEnds(BLOCK, 100)
    ends.leave(range(6))
    assert ends.claim(1, [*range(6), 50])
    assert not ends.claim(2, [*range(6), 60])
    ends.release(1)
    assert ends.claim(2, [*range(6), 60])


def test_others_are_not_held_up() -> None:
    ends = OpenEnds(BLOCK, 100)
    ends.leave(range(6))
    ends.leave(range(8))
    assert ends.claim(1, [*range(6), 50])
    assert ends.claim(2, [*range(5), 60, 61])
    assert ends.claim(3, [*range(200, 206), 1])
    assert ends.claim(4, [*range(200, 206), 2])


def test_in_a_cache_made_anew_nothing_is_open() -> None:
    ends = OpenEnds(BLOCK, 100)
    ends.leave(range(6))
    ends.claim(1, range(7))
    ends.clear()
    assert ends.claim(2, range(7))


ids = st.lists(st.integers(0, 1), min_size=1, max_size=14)


@given(st.lists(ids, max_size=6), st.lists(ids, min_size=2, max_size=8))
def test_no_two_granted_claims_continue_the_same_open_end(ended: list[list[int]], prompts: list[list[int]]) -> None:
    ends = OpenEnds(BLOCK, 100)
    for sequence in ended:
        ends.leave(sequence)
    granted = [prompt for number, prompt in enumerate(prompts) if ends.claim(number, prompt)]
    assert granted[:1] == prompts[:1]
    for end in (sequence for sequence in ended if len(sequence) % BLOCK):
        assert sum(prompt[: len(end)] == end for prompt in granted) <= 1
