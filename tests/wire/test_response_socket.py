"""The Responses socket's machine: lanes in order, steering, interruption, the input buffer; without I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from causerie.chat.records import Item, Status
from causerie.errors import EngineError, InvalidRequest, Overloaded, RequestTooLarge
from causerie.types import CancelCause
from causerie.wire.acknowledgement import Shown
from causerie.wire.kept_answers import ITEM, MAX_ANSWERS, MAX_CHARACTERS, KeptAnswers
from causerie.wire.response_socket import MAX_LANES, MAX_STEERS, MAX_WAITING, ResponseSocket
from causerie.wire.responses_events import StreamEvent
from causerie.wire.sampling import Limits
from causerie.wire.socket_events import Append, Clear, Commit, Reading, Truncate
from causerie.wire.socket_lane import _NEXT, Acknowledge, Action, Begin, Lane, Open, Send, State, Stop

LIMITS = Limits(model="m", default_max_tokens=16, max_choices=64, vocab_size=259, context_window=8192)
READING = Reading(LIMITS)


def machine(**options: Any) -> ResponseSocket:
    return ResponseSocket(lambda error: (400, "invalid_request_error"), READING.opening, **options)


def tell(socket: ResponseSocket, type_: str, **fields: Any) -> list[Action]:
    return socket.receive(READING.parse(json.dumps({"type": type_} | fields)))


def create(socket: ResponseSocket, lane: str | None = None, **fields: Any) -> list[Action]:
    where = {} if lane is None else {"stream_id": lane}
    return tell(socket, "response.create", **{"input": "Hi", "store": False} | where | fields)


def sent(actions: Sequence[Action]) -> dict[str, Any]:
    """The one frame among the actions."""
    (frame,) = [json.loads(action.text) for action in actions if isinstance(action, Send)]
    assert isinstance(frame, dict)
    return frame


def code(actions: Sequence[Action]) -> str:
    found: str = sent(actions)["error"]["code"]
    return found


def begun(actions: Sequence[Action]) -> Begin:
    (begin,) = [action for action in actions if isinstance(action, Begin)]
    return begin


def running(**options: Any) -> ResponseSocket:
    socket = machine(**options)
    create(socket)
    assert socket.created(None, "r1") == []
    return socket


@pytest.mark.parametrize("verb", sorted({verb for verb, _ in _NEXT}))
@pytest.mark.parametrize("state", list(State))
def test_only_the_tables_moves_are_possible(verb: str, state: State) -> None:
    lane = Lane(None, state)
    if (verb, state) in _NEXT:
        lane.move(verb)
        assert lane.state is _NEXT[verb, state]
    else:
        with pytest.raises(RuntimeError):
            lane.move(verb)


def test_creates_of_a_lane_wait_and_those_of_another_do_not() -> None:
    socket = machine()
    assert begun(create(socket, "a", input="one")).lane == "a"
    assert create(socket, "a", input="two") == []
    assert begun(create(socket, "b")).lane == "b"
    socket.created("a", "r1")
    assert begun(socket.ended("a", Status.COMPLETED, ())).call.input[0].text == "two"
    assert not socket.idle


def test_events_bear_their_lane() -> None:
    socket = machine()
    event = StreamEvent(0, "response.created", b'{"type":"response.created","sequence_number":0}')
    create(socket, "a")
    create(socket)
    assert json.loads(socket.event("a", event).text)["stream_id"] == "a"
    assert socket.event(None, event).text == event.data.decode()


def test_a_refused_create_is_an_error_of_its_lane_and_the_next_has_its_turn() -> None:
    socket = machine()
    create(socket, "a")
    create(socket, "a", input="two")
    actions = socket.refused("a", EngineError("no"))
    assert (sent(actions)["stream_id"], code(actions)) == ("a", "engine_error")
    assert begun(actions).call.input[0].text == "two"


def test_lanes_and_what_waits_are_bounded() -> None:
    socket = machine()
    for number in range(MAX_LANES):
        begun(create(socket, f"{number}"))
    assert code(create(socket, "more")) == "websocket_stream_limit_reached"
    begun(create(socket))
    for number in range(MAX_WAITING):
        assert create(socket, f"{number}") == []
    assert code(create(socket)) == "overloaded"


def test_steers_end_the_response_once_and_go_on_together_in_order() -> None:
    socket = running()
    create(socket, input="waits")
    first = tell(socket, "response.steer", previous_response_id="r1", input="one")
    assert sent(first)["type"] == "response.steer.accepted" and Stop(None, CancelCause.STEERED) in first
    second = tell(socket, "response.steer", previous_response_id="r1", input=[{"role": "user", "content": "two"}])
    assert sent(second)["type"] == "response.steer.accepted" and len(second) == 1
    said = (Item("a", "assistant", "so far"),)
    begin = begun(socket.ended(None, Status.INCOMPLETE, said))
    assert [item.text for item in begin.call.input] == ["one", "two"]
    assert (begin.call.previous, begin.history) == ("r1", said)
    assert socket.created(None, "r2") == []
    assert begun(socket.ended(None, Status.COMPLETED, ())).call.input[0].text == "waits"


def test_too_many_steers_are_refused() -> None:
    socket = running()
    for _ in range(MAX_STEERS):
        tell(socket, "response.steer", previous_response_id="r1", input="x")
    assert code(tell(socket, "response.steer", previous_response_id="r1", input="x")) == "too_many_pending_steers"


@pytest.mark.parametrize("how", ["refused", "failed", "cancelled"])
def test_input_that_was_accepted_and_cannot_be_committed_comes_back_under_its_id(how: str) -> None:
    socket = running()
    id_ = sent(tell(socket, "response.steer", previous_response_id="r1", input="x"))["steer"]["id"]
    if how == "failed":
        actions = socket.ended(None, Status.FAILED, ())
    elif how == "cancelled":
        actions = tell(socket, "response.cancel")
        assert Stop(None, CancelCause.STOPPED) in actions
        socket.ended(None, Status.INCOMPLETE, ())
    else:
        socket.ended(None, Status.INCOMPLETE, ())
        actions = socket.refused(None, EngineError("no"))
    frame = sent(actions)
    assert frame["steer"] == {"id": id_, "previous_response_id": "r1", "input": "x"}
    assert code(actions) == ("successor_creation_failed" if how == "refused" else "response_not_active")
    assert socket.idle


def test_a_response_is_cancelled_by_its_id_or_its_lane_also_before_it_exists() -> None:
    socket = machine()
    create(socket, "a")
    assert tell(socket, "response.cancel", stream_id="a") == []
    assert socket.created("a", "r1") == [Stop("a", CancelCause.STOPPED)]
    assert tell(socket, "response.cancel", response_id="r1") == [Stop("a", CancelCause.STOPPED)]
    assert code(tell(socket, "response.steer", previous_response_id="r1", input="x")) == "response_not_active"
    socket.ended("a", Status.CANCELLED, ())
    assert code(tell(socket, "response.cancel", response_id="r1")) == "response_not_active"
    assert code(tell(socket, "response.cancel", response_id="r1", stream_id="a")) == "invalid_value"


def test_a_new_turn_interrupts_what_runs_and_what_has_not_begun() -> None:
    socket = running(interrupting=True)
    assert create(socket, input="two") == [Stop(None, CancelCause.STOPPED)]
    assert create(socket, input="three") == [Stop(None, CancelCause.STOPPED)]
    assert begun(socket.ended(None, Status.CANCELLED, ())).call.input[0].text == "two"
    assert socket.created(None, "r2") == [Stop(None, CancelCause.STOPPED)]
    assert begun(socket.ended(None, Status.CANCELLED, ())).call.input[0].text == "three"
    assert socket.created(None, "r3") == []


def test_items_without_text_are_not_kept_without_bound() -> None:
    kept = KeptAnswers()
    kept.add("r1", [Item("i", "user", "")] * (MAX_CHARACTERS // ITEM))
    assert kept.items("r1")
    kept.add("r2", [Item("i", "user", "")])
    assert kept.items("r1") is None and kept.items("r2")


def test_the_latest_unstored_answers_are_known_with_all_before_them() -> None:
    kept = KeptAnswers()
    for number in range(MAX_ANSWERS + 1):
        kept.add(str(number), (Item("i", "user", "x"),))
    assert kept.items("0") is None and kept.items("1") is not None
    kept.add("large", (Item("i", "user", "x" * (MAX_CHARACTERS - ITEM)),))
    assert kept.items("large") is not None and kept.items("2") is None
    kept.add("larger", (Item("i", "user", "x" * (MAX_CHARACTERS - ITEM + 1)),))
    assert kept.items("larger") is None


def test_the_buffer_opens_with_its_first_text_and_becomes_the_last_message() -> None:
    socket = machine()
    opening = {"input": "Read this:", "stream_id": "a", "store": False}
    actions = tell(socket, "input_text_buffer.append", text="He", response=opening)
    assert isinstance(actions[0], Open) and isinstance(actions[1], Append)
    assert [type(a) for a in tell(socket, "input_text_buffer.append", text="llo")] == [Append]
    assert tell(socket, "input_text_buffer.truncate", length=3) == [Truncate(3)]
    assert tell(socket, "input_text_buffer.commit") == [Commit()]
    begin = begun(socket.committed("Hel"))
    assert begin.lane == "a" and [item.text for item in begin.call.input] == ["Read this:", "Hel"]
    assert code(tell(socket, "input_text_buffer.commit")) == "invalid_value"
    assert [type(a) for a in tell(socket, "input_text_buffer.append", text="x")] == [Open, Append]
    assert tell(socket, "input_text_buffer.clear") == [Clear()]
    assert code(tell(socket, "input_text_buffer.truncate", length=0)) == "invalid_value"


def test_an_error_says_what_http_would_say() -> None:
    frame = json.loads(machine().error(RequestTooLarge("Too large.", param="text"), "a").text)
    assert frame == {
        "type": "error",
        "status": 400,
        "stream_id": "a",
        "error": {
            "type": "invalid_request_error",
            "code": "request_too_large",
            "message": "Too large.",
            "param": "text",
        },
    }


def test_an_acknowledgement_is_its_lanes_while_the_response_is_there() -> None:
    socket = running()
    assert tell(socket, "response.ack", response_id="r1", text_end=3) == [Acknowledge(None, Shown(None, 3))]
    assert tell(socket, "response.ack", response_id="r1", sequence_number=3) == [Acknowledge(None, Shown(3, None))]
    assert code(tell(socket, "response.ack", response_id="r2", text_end=3)) == "response_not_found"
    socket.ended(None, Status.CANCELLED, ())
    assert code(tell(socket, "response.ack", response_id="r1", text_end=3)) == "response_not_active"


def test_a_cancel_is_over_with_the_response_that_it_was_for_even_if_that_is_refused() -> None:
    socket = machine()
    create(socket)
    create(socket, input="next")
    assert tell(socket, "response.cancel") == []
    actions = socket.refused(None, InvalidRequest("No."))
    assert code(actions) == "invalid_value" and begun(actions).call.input[0].text == "next"
    assert socket.created(None, "r2") == []


def test_an_ended_response_that_is_steered_is_answered_on_its_lane_under_its_last_number() -> None:
    socket = machine()
    create(socket, "a")
    socket.created("a", "r1")
    socket.event("a", StreamEvent(7, "response.completed", b'{"type":"response.completed"}'))
    socket.ended("a", Status.COMPLETED, ())
    failed = sent(tell(socket, "response.steer", previous_response_id="r1", input="x"))
    assert (failed["sequence_number"], failed["stream_id"]) == (7, "a")
    assert failed["error"]["code"] == "response_already_completed"


@pytest.mark.parametrize("lane", [None, "a"])
def test_cancelling_where_nothing_is_generated_names_the_lane(lane: str | None) -> None:
    error = sent(tell(machine(), "response.cancel", **({"stream_id": lane} if lane else {})))["error"]
    assert (error["code"], error["param"]) == ("response_not_active", "stream_id" if lane else "type")


def committed() -> tuple[ResponseSocket, list[Action]]:
    """A typed message whose response is being created."""
    socket = machine()
    tell(socket, "input_text_buffer.append", text="Hel", response={"store": False})
    tell(socket, "input_text_buffer.commit")
    return socket, socket.committed("Hel")


def test_a_message_whose_response_is_refused_is_taken_back() -> None:
    socket, actions = committed()
    begun(actions)
    opened, append, error = socket.refused(None, Overloaded("Full."))
    assert code([error]) == "overloaded" and isinstance(opened, Open) and append == Append("Hel", None)
    assert tell(socket, "input_text_buffer.commit") == [Commit()]
    assert [item.text for item in begun(socket.committed("Hel")).call.input] == ["Hel"]


def test_a_message_is_not_taken_back_where_the_next_one_was_begun_or_its_response_exists() -> None:
    socket, _ = committed()
    tell(socket, "input_text_buffer.append", text="next")
    assert code(socket.refused(None, Overloaded("Full."))) == "overloaded"
    assert tell(socket, "input_text_buffer.commit") == [Commit()]
    assert [item.text for item in begun(socket.committed("next")).call.input] == ["next"]

    socket, _ = committed()
    socket.created(None, "r1")
    socket.ended(None, Status.FAILED, ())
    create(socket)
    assert [type(action) for action in socket.refused(None, Overloaded("Full."))] == [Send]
