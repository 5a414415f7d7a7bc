"""Admission: bounds are never passed, order is kept, and what was taken comes back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from causerie.chat.admission import Admission, Ticket
from causerie.errors import InvalidRequest, Overloaded, ShuttingDown


def admission(sequences: int = 2, kv_tokens: int = 100, waiting: int = 1) -> Admission:
    return Admission(max_sequences=sequences, kv_tokens=kv_tokens, max_waiting=waiting)


def enter(house: Admission, granted: list[str], name: str, sequences: int = 1, kv_tokens: int = 10) -> Ticket:
    ticket = house.enter()
    ticket.request(sequences, kv_tokens, lambda: granted.append(name))
    return ticket


def test_runs_at_once_while_there_is_room_then_waits_then_refuses() -> None:
    house, granted = admission(), list[str]()
    enter(house, granted, "a")
    enter(house, granted, "b")
    assert granted == ["a", "b"]
    waiting = enter(house, granted, "c")
    assert (granted, waiting.position, house.waiting) == (["a", "b"], 0, 1)
    with pytest.raises(Overloaded) as refused:
        house.enter()
    assert refused.value.retry_after >= 1


def test_a_burst_is_refused_exactly_past_capacity_and_queue_before_anything_is_known_of_it() -> None:
    house = admission(sequences=4, waiting=3)
    tickets = [house.enter() for _ in range(7)]
    for _ in range(50):
        with pytest.raises(Overloaded):
            house.enter()
    for ticket in tickets:
        ticket.request(1, 1, lambda: None)
    assert (house.sequences_running, house.waiting) == (4, 3)


def test_kv_tokens_bound_what_runs_and_nobody_overtakes_a_large_request() -> None:
    house, granted = admission(sequences=4, waiting=9), list[str]()
    first = enter(house, granted, "first", kv_tokens=60)
    enter(house, granted, "large", kv_tokens=90)
    enter(house, granted, "small", kv_tokens=1)
    assert granted == ["first"]
    first.release()
    assert granted == ["first", "large", "small"]


def test_a_house_that_grows_lets_those_in_who_wait_and_one_that_shrinks_throws_nobody_out() -> None:
    house, granted = admission(sequences=1, waiting=5), list[str]()
    first = enter(house, granted, "a")
    second = enter(house, granted, "b", kv_tokens=100)
    house.resize(max_sequences=2, kv_tokens=200)
    assert granted == ["a", "b"]
    house.resize(max_sequences=1, kv_tokens=100)
    enter(house, granted, "c")
    first.release()
    assert granted == ["a", "b"]
    second.release()
    assert granted == ["a", "b", "c"]


def test_one_that_was_promised_a_place_in_a_larger_house_gets_it_alone() -> None:
    house, granted = admission(sequences=8, waiting=5), list[str]()
    first = enter(house, granted, "a", sequences=8)
    enter(house, granted, "large", sequences=8)
    house.resize(max_sequences=4, kv_tokens=100)
    first.release()
    assert granted == ["a", "large"]
    with pytest.raises(InvalidRequest, match="at most 4"):
        enter(house, granted, "later", sequences=8)


def test_one_that_is_still_tokenising_is_passed_by() -> None:
    house, granted = admission(sequences=1, waiting=5), list[str]()
    slow = house.enter()
    enter(house, granted, "quick").release()
    slow.request(1, 1, lambda: granted.append("slow"))
    assert granted == ["quick", "slow"]


def test_what_can_never_fit_is_refused_by_its_field() -> None:
    house = admission()
    with pytest.raises(InvalidRequest) as refused:
        house.enter().request(3, 3, lambda: None)
    assert refused.value.param == "n"
    with pytest.raises(InvalidRequest) as refused:
        house.enter().request(1, 101, lambda: None)
    assert refused.value.param == "max_tokens"


def test_parts_given_back_let_the_next_one_in() -> None:
    house, granted = admission(sequences=2, kv_tokens=20), list[str]()
    both = enter(house, granted, "both", sequences=2, kv_tokens=20)
    enter(house, granted, "next")
    both.give_back(1, 10)
    assert granted == ["both", "next"]
    both.release()
    both.release()
    assert (house.sequences_running, house.kv_tokens_reserved) == (1, 10)


def test_after_close_nobody_enters_and_who_waits_still_gets_a_turn() -> None:
    house, granted = admission(sequences=1), list[str]()
    first = enter(house, granted, "first")
    enter(house, granted, "second")
    house.close()
    with pytest.raises(ShuttingDown):
        house.enter()
    first.release()
    assert granted == ["first", "second"]


class Bounds(RuleBasedStateMachine):
    """Whatever comes and goes in whatever order: no bound is passed, no room is lost, the first ready is served."""

    def __init__(self) -> None:
        super().__init__()
        self.house = admission(sequences=4, kv_tokens=50, waiting=3)
        self.silent: list[Ticket] = []
        self.asked: list[Ticket] = []

    @rule()
    def arrives(self) -> None:
        before = self.house.waiting
        try:
            self.silent.append(self.house.enter())
        except Overloaded:
            assert before >= self.house.max_waiting

    @precondition(lambda self: self.silent)
    @rule(data=st.data(), sequences=st.integers(1, 5), kv_tokens=st.integers(1, 60))
    def says_what_it_needs(self, data: st.DataObject, sequences: int, kv_tokens: int) -> None:
        ticket = self.silent.pop(data.draw(st.integers(0, len(self.silent) - 1)))
        try:
            ticket.request(sequences, kv_tokens, lambda: None)
        except InvalidRequest:
            assert sequences > 4 or kv_tokens > 50
            ticket.release()
        else:
            self.asked.append(ticket)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1))).release()

    @precondition(lambda self: self.silent)
    @rule(data=st.data())
    def leaves_unasked(self, data: st.DataObject) -> None:
        self.silent.pop(data.draw(st.integers(0, len(self.silent) - 1))).release()

    @invariant()
    def counts_what_runs_and_passes_no_bound(self) -> None:
        running = [ticket for ticket in self.asked if ticket.granted]
        assert self.house.sequences_running == sum(ticket.sequences for ticket in running) <= 4
        assert self.house.kv_tokens_reserved == sum(ticket.kv_tokens for ticket in running) <= 50
        assert self.house.waiting == len(self.silent) + len(self.asked) - len(running)
        assert self.house.waiting <= 4 + 3

    @invariant()
    def the_first_that_is_ready_waits_only_for_room(self) -> None:
        ready = [ticket for ticket in self.house._waiting if ticket in self.asked]
        if ready:
            first = ready[0]
            assert (
                self.house.sequences_running + first.sequences > 4
                or self.house.kv_tokens_reserved + first.kv_tokens > 50
            )


TestBounds = Bounds.TestCase
TestBounds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
