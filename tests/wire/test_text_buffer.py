"""The message that is being typed by a client that waits for no answer: whole, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causerie.errors import InvalidRequest
from causerie.wire.sampling import Limits
from causerie.wire.socket_events import Append, Clear, Commit, Create, Edit, Reading, Truncate
from causerie.wire.text_buffer import State, TextBuffer

LIMITS = Limits(model="m", default_max_tokens=16, max_choices=64, vocab_size=259, context_window=8192)
OPENING: Create = Reading(LIMITS).opening()


class Typist:
    """A client that sends edits and believes that all are done, and a server that refuses some of them."""

    def __init__(self) -> None:
        self.buffer = TextBuffer()
        self.there: str | None = None
        self.believed = ""
        self.thinks_sent = False
        """Whether it has sent a commit, of whose refusal it may not know yet."""

    def send(self, edit: Edit, *, possible: bool) -> None:
        self._believe(edit)
        if not possible and isinstance(edit, Clear | Append):  # It was not understood.
            self.buffer.refuse(type(edit))
            return
        try:
            self.buffer.take(edit)
        except InvalidRequest:
            return
        match edit:
            case Append(text, opening):
                if self.buffer.opening is None:
                    self.buffer.opening, self.there = opening or OPENING, ""
                assert self.there is not None
                self.there += text
            case Truncate(length):
                assert self.there is not None
                if length > len(self.there):
                    self.buffer.refuse(Truncate)
                else:
                    # Whoever truncates says what is to be there, and knows what was refused.
                    self.there = self.believed = self.there[:length]
                    self.thinks_sent = False
            case Clear():
                self.there = None
            case Commit():
                if not possible:
                    self.buffer.refuse(Commit)
                    self.thinks_sent = True
                    return
                assert self.there == self.believed
                self.buffer.close()
                self.there, self.believed = None, ""

    def _believe(self, edit: Edit) -> None:
        match edit:
            case Append(text, opening):
                # With its own beginning it is a new message, unless there is one that is whole.
                new = self.thinks_sent or (opening is not None and self.buffer.state is not State.OPEN)
                self.believed = ("" if new else self.believed) + text
                self.thinks_sent = False
            case Truncate(length):
                self.believed = self.believed[:length]
            case Clear():
                self.believed, self.thinks_sent = "", False


EDITS = st.one_of(
    *[st.builds(Append, st.sampled_from("abc"), opening) for opening in (st.none(), st.none(), st.just(OPENING))],
    st.builds(Truncate, st.integers(0, 3)),
    st.just(Clear()),
    *[st.just(Commit())] * 2,
)


@settings(max_examples=1000)
@given(st.lists(st.tuples(EDITS, st.sampled_from([True, True, False])), min_size=4, max_size=12))
def test_what_is_committed_is_what_the_client_thinks_that_it_typed(edits: list[tuple[Edit, bool]]) -> None:
    typist = Typist()
    for edit, possible in edits:
        typist.send(edit, possible=possible)
        assert (typist.buffer.opening is None) == (typist.there is None)


def test_clearing_always_makes_a_new_beginning() -> None:
    for refused in (Append, Truncate, Clear, Commit):
        buffer = TextBuffer()
        buffer.take(Append("a", None))
        buffer.opening = OPENING
        buffer.refuse(refused)
        assert buffer.state is (State.HELD if refused is Commit else State.TORN)
        buffer.take(Clear())
        assert buffer.opening is None
        buffer.take(Append("b", None))


def test_a_beginning_that_failed_is_begun_anew_by_a_clear_or_another_beginning_only() -> None:
    buffer = TextBuffer()
    buffer.fail()
    for edit in (Append("b", None), Truncate(0), Commit()):
        with pytest.raises(InvalidRequest, match="hole"):
            buffer.take(edit)
    buffer.take(Append("b", OPENING))
    assert buffer.state is State.OPEN
    buffer.fail()
    buffer.take(Clear())
    buffer.take(Append("b", None))


@pytest.mark.parametrize("refused", [Append, Commit])
def test_a_message_with_its_own_beginning_takes_the_place_of_one_that_cannot_go_on(refused: type[Edit]) -> None:
    buffer = TextBuffer()
    buffer.take(Append("a", None))
    buffer.opening = OPENING
    with pytest.raises(InvalidRequest, match="first append"):
        buffer.take(Append("b", OPENING))
    buffer.take(Truncate(0))
    buffer.refuse(refused)
    buffer.take(Append("b", OPENING))
    assert buffer.state is State.OPEN, "and it is to be given its opening"
    assert buffer.opening is None
