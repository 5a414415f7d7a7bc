"""The mirror of OpenVINO's prefix cache: by itself, and beside the runtime."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.engines.base import EndReason
from causerie.engines.openvino_cache import CacheMirror
from causerie.engines.stepping import Cancel, Command, Submit
from causerie.models.folder import ModelFolder
from causerie.types import SamplingParams
from tests.engines.test_openvino import Hand, ids

BLOCK = 4


class Room:
    """A mirror, and what its sequences hold."""

    def __init__(self, capacity: int = 100) -> None:
        self.mirror = CacheMirror(BLOCK, capacity)
        self.running: dict[int, list[int]] = {}
        self.read: set[tuple[int, ...]] = set()
        """The beginnings of all that was ever computed."""

    def add(self, number: int, prompt: Sequence[int]) -> int:
        self.running[number] = list(prompt)
        return self.mirror.add(number, prompt)

    def step(self, *ended: int, cancelled: Sequence[int] = ()) -> None:
        self.mirror.step(cancelled)
        for number, held in self.running.items():
            if number not in cancelled:
                self.read.update(tuple(held[:end]) for end in range(1, len(held) + 1))
                held.append(number)
                self.mirror.gained(number, [number])
        self.mirror.remove([*ended, *cancelled])
        for number in (*ended, *cancelled):
            del self.running[number]

    def run(self, prompt: Sequence[int], *, steps: int = 1) -> int:
        """A sequence alone, from its beginning to its end; what was cached of it."""
        number = 1000
        cached = self.add(number, prompt)
        for _ in range(steps - 1):
            self.step()
        self.step(number)
        return cached


def test_a_prompt_is_found_again_to_its_last_token_which_is_computed_anew() -> None:
    room = Room()
    assert room.run(range(10)) == 0
    assert room.run(range(10)) == 9
    assert room.run(range(8)) == 7


def test_the_partly_filled_block_of_an_ended_sequence_is_found_by_who_continues_it() -> None:
    room = Room()
    room.run(range(10))
    assert room.mirror.known([*range(10), 50]) == 8
    assert room.run([*range(10), 50]) == 10
    assert room.run([*range(9), 60]) == 8


def test_what_was_generated_is_found_but_for_the_last_token_which_was_never_read() -> None:
    room = Room()
    room.run(range(6), steps=4)
    assert room.run([*range(6), 1000, 1000, 1000, 1000, 7]) == 9


def test_what_runs_is_found_before_it_ends() -> None:
    room = Room()
    room.add(1, range(6))
    assert room.add(2, range(8)) == 0
    room.step()
    assert room.add(3, [*range(8), 9]) == 8
    assert room.add(4, [*range(6), 1, 9]) == 6


def test_a_cancelled_sequence_leaves_what_it_had_read() -> None:
    room = Room()
    room.add(1, range(6))
    room.step()
    room.step(cancelled=[1])
    assert room.run([*range(6), 9]) == 6


def test_the_blocks_longest_unused_go_first_and_being_found_is_being_used() -> None:
    room = Room(capacity=6)
    first, second, third = (range(start, start + 8) for start in (0, 100, 200))
    room.run(first)
    room.run(second)
    room.run([*first, 9])
    room.run(third)
    room.run([300])
    assert room.mirror.known(first) == 8
    assert room.mirror.known(second) == 0


def test_a_cache_made_anew_knows_nothing() -> None:
    room = Room()
    room.run(range(8))
    room.mirror.clear()
    assert room.mirror.known(range(8)) == 0


def test_where_the_blocks_do_not_suffice_it_says_that_it_is_not_sure() -> None:
    room = Room(capacity=2)
    room.add(1, range(8))
    room.step()
    assert room.mirror.sure
    room.step()
    assert not room.mirror.sure
    room.mirror.clear()
    assert room.mirror.sure


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14)
moves = st.one_of(prompts, st.none(), st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 5)))


@given(st.lists(moves, max_size=40), st.integers(8, 40))
def test_blocks_are_never_lost_nor_held_twice_and_nothing_is_found_that_was_not_computed(
    steps: list[list[int] | tuple[str, int] | None], capacity: int
) -> None:
    room = Room(capacity)
    for number, move in enumerate(steps):
        if isinstance(move, list):
            # As the service does it: nobody comes in for whom there might be no room to the end.
            if sum(len(held) + 40 for held in room.running.values()) + len(move) + 40 <= capacity * BLOCK:
                cached = room.add(number, move)
                assert cached < len(move)
                assert cached == 0 or tuple(move[:cached]) in room.read
                assert room.mirror.known(move) <= cached + 1
        elif move is None or not room.running:
            room.step()
        else:
            chosen = list(room.running)[move[1] % len(room.running)]
            room.step(*[chosen] * (move[0] == "end"), cancelled=[chosen] * (move[0] == "cancel"))
        check(room.mirror, capacity)
        for number, held in room.running.items():
            if len(held) > 40:
                room.step(number)
                break


def check(mirror: CacheMirror, capacity: int) -> None:
    assert mirror.sure
    tables = mirror._tables.values()
    held = [block for table in tables for block in table.blocks]
    assert mirror.held == len({id(block) for block in held})
    assert 0 <= mirror.held <= capacity
    assert all(block.holders == sum(other is block for other in held) for block in held)
    assert not any(block.holders for block in (*mirror._idle.values(), *mirror._given_back))
    assert all(len({id(block) for block in table.blocks}) == len(table.blocks) for table in tables)


MakeHand = Callable[[int], Hand]


@pytest.fixture
def new_hand(default_folder: ModelFolder) -> Iterator[MakeHand]:
    """Makes an engine with so many blocks, or hardly more."""
    made: list[Hand] = []

    def make(blocks: int) -> Hand:
        made.append(Hand(default_folder, blocks))
        return made[-1]

    yield make
    for hand in made:
        hand.engine._abandon()
        hand.engine._close()


@pytest.mark.model
@pytest.mark.slow
def test_it_holds_as_many_blocks_as_the_runtime_after_every_step(new_hand: MakeHand) -> None:
    chance = random.Random(7)
    hand = new_hand(24)
    reserved: dict[int, int] = {}
    spoken = {0: ids(0, 70)}
    cached = 0
    for _ in range(150):
        commands: list[Command] = [Cancel(number) for number in reserved if chance.random() < 0.03]
        for _ in range(chance.choice([0, 0, 1, 1, 2, 3])):
            # Mostly a beginning of what was said before, cut anywhere, with something new behind it.
            old = chance.choice(list(spoken.values())[-30:])
            cut = chance.choice([len(old), len(old) // 32 * 32, chance.randint(0, len(old))])
            prompt = [*old[:cut], *ids(chance.randrange(40), chance.choice([1, 5, 31, 32, 33]))][:150]
            most = chance.choice([1, 2, 5, 20, 40])
            need = -(-(len(prompt) + most) // 32)
            if sum(reserved.values()) + need > hand.engine.setup.blocks:
                continue
            number = len(spoken)
            reserved[number], spoken[number] = need, prompt
            asked = SamplingParams(max_tokens=most, temperature=chance.choice([0.0, 1.0]), ignore_eos=True, seed=1)
            commands.append(Submit(number, prompt, None if chance.random() < 0.25 else asked))
        hand.said.clear()
        hand.step(*commands)
        assert hand.engine._cache.sure
        for number, updates in hand.said.items():
            spoken[number] = spoken[number] + hand.ids(number)
            cached += updates[0].cached_tokens or 0
            if updates[-1].ended is not None:
                assert updates[-1].ended in (EndReason.LENGTH, EndReason.PREFILLED, EndReason.CANCELLED)
                del reserved[number]
    assert cached > 1000
    assert hand.engine._cache._fresh == hand.engine.setup.blocks


@pytest.mark.model
@pytest.mark.slow
def test_prompts_take_as_long_as_what_it_says_is_not_cached(new_hand: MakeHand) -> None:
    hand = new_hand(72)
    numbers = iter(range(1, 1000))
    length = 1050

    def read(prompt: Sequence[int]) -> tuple[float, int]:
        number = next(numbers)
        begin = time.perf_counter()
        hand.step(Submit(number, prompt, None))
        seconds = time.perf_counter() - begin
        (update,) = hand.said[number]
        assert update.ended is EndReason.PREFILLED and update.cached_tokens is not None
        return seconds, update.cached_tokens

    read(ids(99, length))
    found: dict[str, list[tuple[float, int, int]]] = {}
    for turn in range(0, 3 * 10, 10):
        stem = ids(turn, length)
        for kind, prompt in (
            ("cold", stem),
            ("whole", stem),
            ("half", [*stem[: length // 2], *ids(turn + 1, length // 2)]),
            ("behind a partly filled block", [*stem, *ids(turn + 2, 300)]),
            ("other", ids(turn + 3, 600)),
            ("other", ids(turn + 4, 600)),
            ("evicted", stem),
        ):
            seconds, cached = read(prompt)
            found.setdefault(kind, []).append((seconds, cached, len(prompt)))
    cold = median(seconds for seconds, _, _ in found["cold"])
    says = {kind: {cached for _, cached, _ in runs} for kind, runs in found.items()}
    assert says["cold"] == {0}
    assert says["whole"] == {length - 1}
    assert says["half"] == {length // 2 // 32 * 32}
    assert says["behind a partly filled block"] == {length}
    assert max(says["evicted"]) < length / 2
    for kind, runs in found.items():
        share = median(seconds for seconds, _, _ in runs) / cold
        expected = median((tokens - cached) / length for _, cached, tokens in runs)
        assert expected / 2 - 0.05 < share < expected * 2 + 0.1, (kind, share, expected)
