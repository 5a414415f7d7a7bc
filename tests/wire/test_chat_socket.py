"""The plain chat socket's machine: turns in order, frames, and a sentinel that only we can say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.errors import Overloaded
from causerie.wire.chat_socket import MAX_PENDING_TURNS, MAX_REASON_BYTES, SENTINEL, ChatSocket, close_reason


def test_turns_are_answered_one_at_a_time_in_order() -> None:
    socket = ChatSocket()
    socket.receive("one")
    socket.receive("")
    assert not socket.idle
    assert socket.next_turn() == "one"
    with pytest.raises(RuntimeError):
        socket.next_turn()
    assert socket.end_turn() == SENTINEL
    assert socket.next_turn() == ""
    socket.end_turn()
    assert socket.next_turn() is None and socket.idle


def test_turn_that_was_not_begun_cannot_end() -> None:
    with pytest.raises(RuntimeError):
        ChatSocket().end_turn()


def test_waiting_turns_are_bounded() -> None:
    socket = ChatSocket()
    for _ in range(MAX_PENDING_TURNS):
        socket.receive("x")
    with pytest.raises(Overloaded):
        socket.receive("one too many")


@given(st.lists(st.sampled_from([SENTINEL, SENTINEL[:5], SENTINEL[5:], "", "text"]) | st.text(), max_size=10))
def test_no_frame_of_the_answer_is_the_sentinel_and_none_is_lost(texts: list[str]) -> None:
    socket = ChatSocket()
    frames = [frame for text in texts for frame in socket.frames(text)]
    assert SENTINEL not in frames and "" not in frames
    assert "".join(frames) == "".join(texts)


@given(st.text())
def test_close_reason_fits_its_frame(message: str) -> None:
    reason = close_reason(message)
    assert len(reason.encode()) <= MAX_REASON_BYTES
    assert reason == message or message.startswith(reason[:-1])
