"""Where a prompt is sent, by what is known at the ingress."""

from __future__ import annotations

import pytest

from causerie.engines.scripted import ScriptedEngine
from causerie.ray.placement import Placement, slack, whole
from tests.support.service import says

ONE = ScriptedEngine(says("x"), kv_tokens=4096, max_sequences=8).info
PROMPT = list(range(256))


@pytest.fixture
def placement() -> Placement:
    placement = Placement(ONE)
    placement.is_there(["a", "b", "c"])
    return placement


def test_where_nothing_is_known_to_be_there_the_router_chooses() -> None:
    assert Placement(ONE).choose(PROMPT) == ""


def test_the_least_busy_one_is_chosen(placement: Placement) -> None:
    placement.take("a")
    placement.take("c")
    assert placement.choose(PROMPT) == "b"
    placement.take("b")
    placement.take("b")
    placement.leave("c")
    assert placement.choose(PROMPT) == "c"


def test_one_that_has_read_the_prompt_may_be_a_little_busier_but_not_full(placement: Placement) -> None:
    placement.has_read("a", PROMPT)
    for _ in range(slack(ONE.max_sequences)):
        placement.take("a")
    assert placement.choose(PROMPT) == "a"
    placement.take("a")
    assert placement.choose(PROMPT) != "a"
    for replica in ("b", "c"):
        for _ in range(7):
            placement.take(replica)
    for _ in range(5):
        placement.take("a")
    assert placement.choose(PROMPT) in ("b", "c")


def test_a_small_share_of_the_prompt_is_no_reason_unless_it_is_asked_for(placement: Placement) -> None:
    placement.has_read("a", PROMPT[:64])
    placement.take("a")
    assert placement.choose(PROMPT) != "a"
    assert placement.choose(PROMPT, least=1) == "a"


def test_the_longest_part_counts(placement: Placement) -> None:
    placement.has_read("a", PROMPT[:160])
    placement.has_read("b", PROMPT)
    assert placement.known(PROMPT) == 256
    assert placement.choose(PROMPT) == "b"


def test_what_is_gone_is_forgotten_and_not_learnt_again(placement: Placement) -> None:
    placement.has_read("a", PROMPT)
    placement.is_there(["b"])
    assert placement.choose(PROMPT) == "b"
    placement.has_read("a", PROMPT)
    assert placement.known(PROMPT) == 0


def test_one_that_was_lost_is_asked_last_until_it_answers(placement: Placement) -> None:
    placement.has_read("a", PROMPT)
    placement.lost("a")
    for replica in ("b", "c"):
        for _ in range(20):
            placement.take(replica)
    assert placement.choose(PROMPT) in ("b", "c")
    placement.answered("a")
    assert placement.choose(PROMPT) == "a"


def test_with_nothing_but_lost_ones_one_of_them_is_asked(placement: Placement) -> None:
    for replica in ("a", "b", "c"):
        placement.lost(replica)
    assert placement.choose(PROMPT) in ("a", "b", "c")


def test_several_engines_have_the_room_of_all() -> None:
    assert whole(ONE, 3).max_sequences == 24
    assert whole(ONE, 3).kv_tokens == 3 * 4096
