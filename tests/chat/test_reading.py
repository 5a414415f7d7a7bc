"""Reading prompts in pieces: turns are taken, pieces end on block boundaries, a cancelled prompt is read no further."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.chat.reading import PromptReader, Reading
from causerie.engines.base import Deliver, EndReason, EngineInfo, EngineStats, Update
from causerie.types import SamplingParams


class Desk:
    """An engine that only notes what it is asked to read; the test says when it has."""

    def __init__(self, prefix_block: int = 32) -> None:
        self.info = EngineInfo("desk", 8192, 100_000, 8, frozenset(), prefix_block=prefix_block)
        self.pieces: list[tuple[int, tuple[int, ...]]] = []
        self.gently: list[bool] = []
        self.cancelled: list[int] = []
        self.known: tuple[int, ...] = ()

    def start(self, deliver: Deliver) -> None: ...

    def submit(self, sequence: int, prompt: Sequence[int], sampling: SamplingParams) -> None: ...

    def prefill(self, sequence: int, prompt: Sequence[int], *, gently: bool = False) -> None:
        self.pieces.append((sequence, tuple(prompt)))
        self.gently.append(gently)

    def cached(self, prompt: Sequence[int]) -> int:
        same = next((i for i, (a, b) in enumerate(zip(prompt, self.known, strict=False)) if a != b), None)
        shared = min(len(prompt), len(self.known)) if same is None else same
        return shared // self.info.prefix_block * self.info.prefix_block

    def cancel(self, sequence: int) -> None:
        self.cancelled.append(sequence)

    def stats(self) -> EngineStats:
        return EngineStats()

    def stop(self) -> None: ...


class Room:
    def __init__(self, piece: int = 64, block: int = 32) -> None:
        self.desk = Desk(block)
        self.ahead: list[Reading] = []
        self.reader = PromptReader(
            self.desk,
            piece=piece,
            next_sequence=itertools.count(1).__next__,
            ahead=lambda: next(iter(self.ahead), None),
        )
        self.ready: list[tuple[str, Update | None]] = []
        self.progress: dict[str, list[int]] = {}

    def begin(self, name: str, ids: Sequence[int], *, whole: bool = False) -> Reading | None:
        return self.reader.begin(
            ids,
            whole=whole,
            on_progress=lambda read: self.progress.setdefault(name, []).append(read),
            on_ready=lambda failure: self.ready.append((name, failure)),
        )

    def finish_piece(self, ended: EndReason = EndReason.PREFILLED, cached: int | None = None) -> int:
        """End the piece in flight and return its length."""
        sequence, prompt = self.desk.pieces[-1]
        self.desk.known = max(self.desk.known, prompt, key=len)
        assert self.reader.update(Update(sequence, ended=ended, cached_tokens=cached))
        return len(prompt)


def ahead(room: Room, *, gently: bool) -> Reading:
    reading = Reading(
        range(32), 32, 0, 32, lambda _: None, lambda failure: room.ready.append(("ahead", failure)), gently=gently
    )
    room.ahead.append(reading)
    room.reader.wake()
    return reading


def test_what_is_read_gently_gives_way_to_a_prompt_that_somebody_waits_for() -> None:
    room = Room()
    reading = ahead(room, gently=True)
    room.begin("long", range(1000, 1200))
    assert (room.desk.gently, room.desk.cancelled) == ([True], [1])
    assert len(room.desk.pieces) == 1, "one piece in flight"
    room.finish_piece(EndReason.CANCELLED)
    assert reading.interrupted
    ((name, failure),) = room.ready
    assert name == "ahead" and failure is not None and failure.ended is EndReason.CANCELLED
    assert room.desk.gently == [True, False]
    assert room.desk.pieces[-1][1][0] == 1000


def test_what_is_read_gently_gives_way_to_a_short_prompt_too() -> None:
    room = Room()
    ahead(room, gently=True)
    assert room.begin("short", range(1000, 1010)) is None
    assert room.desk.cancelled == [1]


def test_a_whole_piece_is_not_interrupted() -> None:
    room = Room()
    reading = ahead(room, gently=False)
    room.begin("long", range(1000, 1200))
    assert room.desk.cancelled == []
    room.finish_piece()
    assert (reading.interrupted, room.ready) == (False, [("ahead", None)])


def test_a_prompt_of_one_piece_is_not_read_ahead() -> None:
    room = Room()
    assert room.begin("short", range(64)) is None
    assert room.desk.pieces == []


def test_an_engine_without_a_prefix_cache_is_never_asked() -> None:
    assert Room(block=0).begin("long", range(1000)) is None


def test_a_long_prompt_is_read_in_growing_pieces_until_one_is_left() -> None:
    room = Room()
    room.begin("long", range(200))
    assert [room.finish_piece(), room.finish_piece(), room.finish_piece()] == [64, 128, 192]
    assert room.progress["long"] == [64, 128, 192]
    assert room.ready == [("long", None)]
    assert len(room.desk.pieces) == 3


def test_two_prompts_take_turns_with_one_piece_in_flight() -> None:
    room = Room()
    room.begin("a", range(200))
    room.begin("b", range(1000, 1200))
    firsts = []
    for done in range(6):
        assert len(room.desk.pieces) == done + 1
        firsts.append("a" if room.desk.pieces[-1][1][0] == 0 else "b")
        room.finish_piece()
    assert firsts == ["a", "b", "a", "b", "a", "b"]


def test_what_was_read_before_is_not_read_again_in_pieces() -> None:
    room = Room()
    room.begin("first", range(200))
    for _ in range(3):
        room.finish_piece()
    assert room.begin("again", range(200)) is None
    room.begin("longer", [*range(200), *range(5000, 5200)])
    assert len(room.desk.pieces[-1][1]) == 192 + 64


def test_a_cancelled_prompt_is_cancelled_in_the_engine_and_read_no_further() -> None:
    room = Room()
    first = room.begin("a", range(200))
    waiting = room.begin("b", range(1000, 1200))
    assert first is not None
    assert waiting is not None
    stopped: list[str] = []
    room.reader.cancel(first, lambda: stopped.append("a"))
    room.reader.cancel(waiting, lambda: stopped.append("b"))
    assert room.desk.cancelled == [1]
    assert stopped == ["b"], "the engine still reads the other one"
    room.finish_piece(EndReason.CANCELLED)
    assert stopped == ["b", "a"]
    assert (room.ready, room.progress, len(room.desk.pieces)) == ([], {}, 1)


@pytest.mark.parametrize("ended", [EndReason.OUT_OF_MEMORY, EndReason.ERROR, EndReason.CANCELLED])
def test_a_piece_that_fails_says_so_and_the_next_prompt_goes_on(ended: EndReason) -> None:
    room = Room()
    room.begin("a", range(200))
    room.begin("b", range(1000, 1200))
    room.finish_piece(ended)
    ((name, failure),) = room.ready
    assert failure is not None
    assert (name, failure.ended) == ("a", ended)
    assert room.desk.pieces[-1][1][0] == 1000


@given(st.integers(1, 700), st.integers(32, 300), st.integers(0, 700), st.booleans())
def test_pieces_always_end_on_blocks_and_leave_something_for_the_request(
    length: int, piece: int, cached: int, whole: bool
) -> None:
    room = Room(piece=piece)
    ids = range(length)
    room.desk.known = tuple(ids[:cached])
    reading = room.begin("p", ids, whole=whole)
    while reading is not None and not room.ready:
        before = len(room.desk.pieces)
        assert room.finish_piece() % 32 == 0
        assert before == len(room.desk.pieces) or not room.ready
    ends = [len(prompt) for _, prompt in room.desk.pieces]
    assert ends == sorted(set(ends))
    assert all(end < length for end in ends)
    assert length - room.desk.cached(ids) <= max(32, piece // 32 * 32)


@pytest.mark.parametrize(
    ("pieces", "request_", "before"),
    [
        ([0, 64, 128], 192, 0),
        ([40, 64, 128], 192, 40),
        ([63, 127, 191], 198, 198),  # Somebody else read it all before the first piece's turn came.
        ([63, 70, 128], 192, 70),
        ([None, None, None], 192, None),
    ],
)
def test_only_what_was_cached_before_the_first_piece_is_told_as_cached(
    pieces: list[int | None], request_: int, before: int | None
) -> None:
    room = Room()
    reading = room.begin("long", range(200))
    assert reading is not None
    for cached in pieces:
        room.finish_piece(cached=cached)
    assert reading.cached_before(request_) == before
