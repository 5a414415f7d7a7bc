"""The Responses socket's machine under random frames and random outcomes: all that began ends, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from causerie.chat.records import Status
from causerie.errors import CauserieError
from causerie.wire.socket_lane import Acknowledge, Action, Begin, Send, Stop
from tests.wire.test_response_socket import READING, create, machine, tell


class World:
    """Whoever feeds the machine: answers what it asks for, in any order, and keeps account."""

    def __init__(self, interrupting: bool) -> None:
        self.socket = machine(interrupting=interrupting)
        self.creating: list[str | None] = []
        self.running: dict[str | None, str] = {}
        self.begun = self.ended = self.refused = 0
        self.accepted: set[str] = set()
        self.settled: list[str] = []
        self.carried: dict[str | None, list[str]] = {}

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Begin):
                assert action.lane not in self.creating and action.lane not in self.running
                self.creating.append(action.lane)
                self.begun += 1
            elif isinstance(action, Stop | Acknowledge):
                assert action.lane in self.running
            elif isinstance(action, Send):
                self.heard(json.loads(action.text))

    def heard(self, frame: dict[str, Any]) -> None:
        id_ = frame.get("steer", {}).get("id")
        if frame["type"] == "response.steer.accepted":
            self.accepted.add(id_)
        elif frame["type"] == "response.steer.failed" and id_ is not None:
            self.settled.append(id_)

    def happen(self, choice: int) -> None:
        if self.creating and (choice % 2 or not self.running):
            lane = self.creating.pop(choice % len(self.creating))
            if choice % 5 == 4:
                self.refused += 1
                self.do(self.socket.refused(lane, CauserieError("no")))
            else:
                steers = [id_ for id_, _ in self.socket._lanes[lane].steers]
                self.running[lane] = f"r{self.begun}-{self.ended}"
                self.do(self.socket.created(lane, self.running[lane]))
                self.settled += steers
        elif self.running:
            lane = list(self.running)[choice % len(self.running)]
            del self.running[lane]
            self.ended += 1
            status = [Status.COMPLETED, Status.INCOMPLETE, Status.CANCELLED, Status.FAILED][choice % 4]
            self.do(self.socket.ended(lane, status, ()))


steps = st.one_of(
    st.tuples(st.just("create"), st.sampled_from([None, "a", "b"])),
    st.tuples(st.just("steer"), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.sampled_from([None, "a", "b"])),
    st.tuples(st.just("ack"), st.integers(0, 3)),
    st.tuples(st.just("happen"), st.integers(0, 59)),
    st.tuples(st.just("happen"), st.integers(0, 59)),
)


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.lists(steps, max_size=40))
def test_everything_that_began_ends_and_no_steering_input_is_lost(interrupting: bool, script: list[Any]) -> None:
    world = World(interrupting)
    for verb, value in script:
        if verb == "create":
            world.do(create(world.socket, value))
        elif verb == "cancel":
            world.do(tell(world.socket, "response.cancel", **({} if value is None else {"stream_id": value})))
        elif verb == "happen":
            world.happen(value)
        elif world.running:
            target = list(world.running.values())[value % len(world.running)]
            if verb == "ack":
                world.do(tell(world.socket, "response.ack", response_id=target, sequence_number=value))
            else:
                world.do(tell(world.socket, "response.steer", previous_response_id=target, input="x"))
    while world.creating or world.running:
        world.happen(0 if world.running else 1)
    assert world.socket.idle
    assert world.begun == world.ended + world.refused
    assert sorted(world.settled) == sorted(world.accepted)


NAMES = ["type", "input", "stream_id", "text", "length", "response", "generate", "previous_response_id", "response_id"]
NAMES += ["sequence_number", "text_end"]
TYPES = [
    *("response.create", "response.steer", "response.cancel", "response.ack"),
    *(f"input_text_buffer.{verb}" for verb in ("append", "truncate", "clear", "commit")),
]
anything = st.recursive(
    st.none() | st.text(max_size=8) | st.integers() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner | st.sampled_from(TYPES), max_size=5)
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.text() | anything.map(json.dumps))
def test_no_frame_raises(text: str) -> None:
    machine().receive(READING.parse(text))
