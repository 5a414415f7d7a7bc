"""The mirror of OpenVINO's prefix cache: what is known, what is forgotten, and who may not be added together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from causerie.engines.openvino_cache import CacheMirror

BLOCK = 4


def mirror(capacity: int = 100) -> CacheMirror:
    return CacheMirror(BLOCK, capacity)


def test_whole_blocks_are_known_from_the_start_on() -> None:
    cache = mirror()
    cache.computed(range(10), ended=False)
    assert cache.known(range(10)) == 8
    assert cache.known([*range(6), 99, 98]) == 4
    assert cache.known(range(1, 10)) == 0


def test_the_least_recently_computed_blocks_are_forgotten_first() -> None:
    cache = mirror(capacity=2)
    cache.computed(range(8), ended=True)
    cache.computed(range(100, 108), ended=True)
    assert (cache.known(range(8)), cache.known(range(100, 108))) == (0, 8)


def test_two_that_continue_an_ended_sequence_inside_its_last_block_take_turns() -> None:
    cache = mirror()
    cache.computed(range(6), ended=True)
    assert cache.claim(1, [*range(6), 50])
    assert not cache.claim(2, [*range(6), 60])
    cache.release(1)
    assert cache.claim(2, [*range(6), 60])


def test_others_are_not_held_up() -> None:
    cache = mirror()
    cache.computed(range(6), ended=True)
    cache.computed(range(8), ended=True)
    cache.computed(range(200, 206), ended=False)
    assert cache.claim(1, [*range(6), 50])
    assert cache.claim(2, [*range(5), 60, 61])
    assert cache.claim(3, [*range(200, 206), 1])
    assert cache.claim(4, [*range(200, 206), 2])


def test_a_cache_made_anew_knows_nothing() -> None:
    cache = mirror()
    cache.computed(range(6), ended=True)
    cache.claim(1, range(7))
    cache.clear()
    assert cache.known(range(6)) == 0
    assert cache.claim(2, range(7))


ids = st.lists(st.integers(0, 1), min_size=1, max_size=14)


@given(st.lists(ids, max_size=6), st.lists(ids, min_size=2, max_size=8))
def test_no_two_granted_claims_continue_the_same_open_end(ended: list[list[int]], prompts: list[list[int]]) -> None:
    cache = mirror()
    for sequence in ended:
        cache.computed(sequence, ended=True)
    granted = [prompt for number, prompt in enumerate(prompts) if cache.claim(number, prompt)]
    assert granted[:1] == prompts[:1]
    open_ends = [sequence for sequence in ended if len(sequence) % BLOCK]
    for end in open_ends:
        assert sum(prompt[: len(end)] == end for prompt in granted) <= 1
