"""Stop strings: nothing of one is ever let through, and nothing else is kept back for good."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from causerie.text.stop import StopMatcher


def expected(text: str, stops: tuple[str, ...]) -> str:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]


def run(pieces: list[str], stops: tuple[str, ...]) -> tuple[list[str], StopMatcher]:
    matcher = StopMatcher(stops)
    sent = [matcher.feed(piece) for piece in pieces]
    return [*sent, matcher.flush()], matcher


pieces_of_few_letters = st.lists(st.text("abc", max_size=6), max_size=12)
stops_of_few_letters = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4).map(tuple)


@given(pieces_of_few_letters, stops_of_few_letters)
@example(["abc", "x"], ("abcd", "bc"))
@example(["ab", "cd"], ("abcd", "bc"))
@example(["aab", "aab", "aac"], ("aabaac",))
def test_joined_output_is_the_text_before_the_leftmost_stop(pieces: list[str], stops: tuple[str, ...]) -> None:
    sent, matcher = run(pieces, stops)
    text = "".join(pieces)
    assert "".join(sent) == expected(text, stops)
    if matcher.matched is None:
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(matcher.matched, len(expected(text, stops)))


@given(pieces_of_few_letters, stops_of_few_letters)
def test_what_is_held_back_may_begin_a_stop(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    fed = sent = ""
    for piece in pieces:
        fed += piece
        sent += matcher.feed(piece)
        if matcher.matched is not None:
            break
        held = fed[len(sent) :]
        assert fed.startswith(sent)
        assert not held or any(stop.startswith(held) or held.startswith(stop) or stop in held for stop in stops)


def test_text_after_a_match_is_dropped() -> None:
    sent, matcher = run(["one ST", "OP two", " three"], ("STOP",))
    assert (sent, matcher.matched) == (["one ", "", "", ""], "STOP")


def test_text_goes_through_at_once_where_no_stop_can_begin() -> None:
    matcher = StopMatcher(("\n\n", "User:"))
    assert [matcher.feed(piece) for piece in ("Hello", " there.\n", "All", " U", "ser", "s.")] == [
        "Hello",
        " there.",
        "\nAll",
        " ",
        "",
        "Users.",
    ]


def test_an_overtaken_stop_is_decided_at_the_end() -> None:
    matcher = StopMatcher(("abcd", "bc"))
    assert (matcher.feed("xabc"), matcher.matched) == ("x", None)
    assert (matcher.flush(), matcher.matched) == ("a", "bc")


def test_an_empty_stop_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(("a", ""))


def test_adversarial_stops_do_not_slow_down_with_their_length() -> None:
    """Naive matching would compare half of each stop at each of a million places: minutes, not seconds."""
    stop = "a" * 5000 + "b"
    matcher = StopMatcher(tuple(stop + str(number) for number in range(4)))
    sent = "".join(matcher.feed("aaaaa") for _ in range(40_000))
    assert len(sent) + len(matcher.flush()) == 200_000
