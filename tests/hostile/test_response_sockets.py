"""The sockets that speak frames: cases 13, 14, 35, 37 and 38, promises 1 to 4, and whatever else is sent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from causerie.config import Settings
from tests.hostile.conftest import Serve
from tests.hostile.test_socket_frames import LIMIT, VIOLATIONS, endless
from tests.support.raw import CLOSE, TEXT, ChatSocket, frame
from tests.support.served import SONG, Served, scripted, served, until

TERMINALS = ("response.completed", "response.incomplete", "response.failed")
FORMS = {"responses": ("/v1/responses", {}), "framed chat": ("/", {"Sec-WebSocket-Protocol": "causerie.chat.v1"})}

both_forms = pytest.mark.parametrize(("path", "headers"), FORMS.values(), ids=FORMS)


def socket_on(server: Served, path: str, headers: dict[str, str], **options: Any) -> ChatSocket:
    socket = server.bare_socket(**options)
    socket.path = path
    return socket.open(headers)


def say(type_: str, **fields: Any) -> bytes:
    return frame(TEXT, orjson.dumps({"type": type_} | fields))


CREATE = say("response.create", input="Hi")


def event(socket: ChatSocket) -> dict[str, Any]:
    opcode, payload = socket.frame()
    assert opcode == TEXT, (opcode, payload)
    found: dict[str, Any] = orjson.loads(payload)
    return found


def until_type(socket: ChatSocket, *types: str) -> dict[str, Any]:
    while (found := event(socket))["type"] not in types:
        pass
    return found


@both_forms
@pytest.mark.parametrize(("data", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_violation_is_closed_with_its_code(
    steady: Served, path: str, headers: dict[str, str], data: bytes, code: int
) -> None:
    """Case 37."""
    before = len(steady.watch.prompts)
    assert socket_on(steady, path, headers).send(data).close_code() == code
    assert len(steady.watch.prompts) == before


@pytest.mark.parametrize("name", ["bad UTF-8", "unmasked", "binary", "frame of 2^63 - 1"])
def test_violation_in_mid_answer_frees_every_lane(serve: Serve, name: str) -> None:
    """Case 37, promise 2."""
    data, code = VIOLATIONS[name]
    server = serve(endless, step_seconds=0.01)
    socket = socket_on(server, "/v1/responses", {})
    for lane in "abc":
        socket.send(say("response.create", input="Hi", stream_id=lane))
    for _ in range(3):
        until_type(socket, "response.output_item.added")
    socket.send(data)
    server.idle(within=2.0)
    assert socket.close_code() == code


@both_forms
def test_a_reset_frees_every_lane_and_what_waits(serve: Serve, path: str, headers: dict[str, str]) -> None:
    """Cases 1 and 3. A chat's answer is waited for unless the client says otherwise."""
    server = serve(endless, step_seconds=0.005)
    socket = socket_on(server, path, headers | {"X-On-Disconnect": "cancel"})
    socket.send(CREATE * 5)
    until_type(socket, "response.output_text.delta")
    socket.reset()
    server.idle(within=2.0)


@both_forms
@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_a_foreign_page_opens_no_socket(steady: Served, path: str, headers: dict[str, str], origin: str) -> None:
    """Case 35."""
    socket = steady.bare_socket()
    socket.path = path
    status, _ = socket.ask(headers | {"Origin": origin}).head()
    assert status == 403


@both_forms
def test_a_client_that_reads_nothing_is_cut_off(serve: Serve, path: str, headers: dict[str, str]) -> None:
    """Cases 13 and 14."""
    size = {"context_window": 100_000_000, "kv_tokens": 100_000_000, "prefix_block": 4096}
    server = serve(
        endless, {"send_timeout": 0.5, "max_tokens": 50_000_000}, ids_per_step=10_000, step_seconds=0.002, **size
    )
    cancelling = headers | {"X-On-Disconnect": "cancel"}
    socket = socket_on(server, path, cancelling, receive_buffer=4096).send(CREATE)
    until(lambda: server.service.running, within=5.0)
    server.idle(within=15.0)
    assert server.metric('cancellations_total{cause="slow_reader"}') == 1
    socket.reset()


def test_ten_megabytes_to_append_are_no_message_and_ten_in_pieces_are_too_much(steady: Served) -> None:
    piece = say("input_text_buffer.append", text="x" * (LIMIT - 100))
    socket = socket_on(steady, "/v1/responses", {})
    for _ in range(10):
        socket.send(piece)
    refused = until_type(socket, "error")
    assert refused["error"]["code"] == "request_too_large" and refused["status"] == 413
    socket.send(say("input_text_buffer.clear") + CREATE)
    until_type(socket, "response.completed")
    large = frame(TEXT, b'{"type":"input_text_buffer.append","text":"' + b"x" * 10 * LIMIT + b'"}')
    with suppress(ConnectionError):
        socket.send(large)
    assert socket.close_code() == 1009


def test_deep_and_large_frames_are_errors(steady: Served) -> None:
    """Case 28, in a frame."""
    socket = socket_on(steady, "/v1/responses", {})
    with steady.heart() as heart:
        for bad in (b"[" * 100_000, b'{"type":' + b'{"a":' * 50_000, b'{"type":"' + b"x" * 500_000 + b'"}'):
            socket.send(frame(TEXT, bad))
            error = event(socket)
            assert error["type"] == "error" and len(error["error"]["message"]) < 500
    assert heart.longest_stall < 0.25
    socket.send(CREATE)
    until_type(socket, "response.completed")


@pytest.mark.parametrize("piece", [frame(TEXT, b""), say("response.cancel"), say("response.steer")])
def test_a_flood_of_bad_frames_leaves_others_their_turn(steady: Served, piece: bytes) -> None:
    """Case 37, promise 3. The best of five, since the machine may be busy otherwise."""
    stalls = []
    for _ in range(5):
        with steady.heart() as heart, suppress(OSError):
            socket = socket_on(steady, "/v1/responses", {}, timeout=1.0)
            socket.send(piece * 20_000 + frame(CLOSE, b"\x03\xe8"))
            socket.rest()
        stalls.append(heart.longest_stall)
        if stalls[-1] < 0.05:
            return
    raise AssertionError(f"the event loop stood still for {min(stalls):.3f} s")


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Served]:
    """Its aftermath is checked once everything was thrown at it."""
    with served(scripted(lambda _: b"okay" * 4, Settings(engine="scripted"), step_seconds=0.002), song=SONG) as running:
        yield running


LANES = [None, "a", "b", "c"]


class Frames(RuleBasedStateMachine):
    """Random frames in random order on one socket.

    Every response has one end, and nothing after it. What is kept of one that was interrupted is what was acknowledged
    of it, or else what came.
    """

    server: Served

    def __init__(self) -> None:
        super().__init__()
        self.socket = socket_on(self.server, "/v1/responses", {}, timeout=5.0)
        self.marks = 0
        self.open: dict[str, int] = {}
        self.ended: list[str] = []
        self.accepted: set[str] = set()
        self.failed: set[str] = set()
        self.on_lane: dict[str | None, str] = {}
        self.texts: dict[str, str] = {}
        self.shown: dict[str, int] = {}
        self.refused = 0

    def learn(self) -> None:
        """Take in what came so far."""
        self.marks += 1
        mark = f"mark-{self.marks}"
        self.socket.send(say(mark))
        while True:
            found = event(self.socket)
            if found["type"] == "error":
                assert found["status"] < 500 and found["error"]["code"]
                self.refused += found["error"]["param"] in ("response_id", "text_end")
                if mark in found["error"]["message"]:
                    return
            elif found["type"] == "response.steer.accepted":
                self.accepted.add(found["steer"]["id"])
            elif found["type"] == "response.steer.failed":
                self.failed.add(found["steer"].get("id"))
            elif found["type"] != "input_text_buffer.prefilled":
                self._of_response(found)

    def _of_response(self, found: dict[str, Any]) -> None:
        lane = found.get("stream_id")
        if found["type"] == "response.created":
            assert found["response"]["id"] not in (*self.open, *self.ended)
            self.open[found["response"]["id"]] = found["sequence_number"]
            self.on_lane[lane] = found["response"]["id"]
            self.texts[self.on_lane[lane]] = ""
        if found["type"] == "response.output_text.delta":
            self.texts[self.on_lane[lane]] += found["delta"]
        if "response" in found:
            id_ = found["response"]["id"]
            assert found["type"] == "response.created" or found["sequence_number"] > self.open[id_]
            self.open[id_] = found["sequence_number"]
            if found["type"] in TERMINALS:
                del self.open[id_]
                self.ended.append(id_)
                said = "".join(item["content"][0]["text"] for item in found["response"]["output"])
                kept = None if found["type"] == "response.completed" else self.shown.get(id_)
                assert said == self.texts[id_][:kept]

    @rule(
        lane=st.sampled_from(LANES),
        store=st.booleans(),
        generate=st.sampled_from([True, True, False]),
        parent=st.integers(0, 20),
        text=st.text(max_size=20),
    )
    def create(self, lane: str | None, store: bool, generate: bool, parent: int, text: str) -> None:
        fields: dict[str, Any] = {"input": text or "Hi", "store": store, "stream_id": lane, "generate": generate}
        if parent < len(self.ended):
            fields["previous_response_id"] = self.ended[-1 - parent]
        self.socket.send(say("response.create", **fields))

    @rule(which=st.integers(0, 5), text=st.text(max_size=5))
    def steer(self, which: int, text: str) -> None:
        known = [*self.open, *self.ended[-3:], "resp_none"]
        target_id = known[which % len(known)]
        self.socket.send(say("response.steer", previous_response_id=target_id, input=text))

    @rule(which=st.integers(0, 5), lane=st.sampled_from(LANES))
    def cancel(self, which: int, lane: str | None) -> None:
        known = [*self.open, None, "resp_none"]
        self.socket.send(say("response.cancel", response_id=known[which % len(known)], stream_id=lane))

    @rule(which=st.integers(0, 3), part=st.integers(-1, 5))
    def ack(self, which: int, part: int) -> None:
        self.learn()
        known = [*self.open, *self.open, *self.ended[-1:], "resp_none"]
        id_ = known[which % len(known)]
        while id_ in self.open and not self.texts[id_]:
            self.learn()
        characters, before = part * len(self.texts.get(id_, "")) // 4, self.refused
        self.socket.send(say("response.ack", response_id=id_, text_end=characters))
        self.learn()
        if self.refused == before:
            assert id_ != "resp_none" and characters >= self.shown.get(id_, 0)
            self.shown[id_] = characters

    @rule(text=st.text(max_size=40), opening=st.sampled_from([None, {}, {"store": False, "stream_id": "a"}, 5]))
    def append(self, text: str, opening: Any) -> None:
        self.socket.send(say("input_text_buffer.append", text=text, response=opening))

    @rule(verb=st.sampled_from(["truncate", "clear", "commit"]), length=st.integers(-1, 30))
    def edit(self, verb: str, length: int) -> None:
        self.socket.send(say(f"input_text_buffer.{verb}", **({"length": length} if verb == "truncate" else {})))

    @rule(data=st.text(max_size=20))
    def garbage(self, data: str) -> None:
        self.socket.send(frame(TEXT, data.encode()))

    @rule()
    def listen(self) -> None:
        self.learn()

    def teardown(self) -> None:
        for _ in range(200):
            self.server.idle(within=5.0)
            before = len(self.ended)
            self.learn()
            if not self.open and len(self.ended) == before and not self.server.service.running:
                break
        assert not self.open
        assert self.failed - {None} <= self.accepted
        self.socket.send(frame(CLOSE, struct.pack("!H", 1000)))
        self.socket.close()


@pytest.mark.slow
def test_random_frames_in_random_order_end_every_response_once(fuzzed: Served) -> None:
    """Promises 1, 2 and 6."""
    Frames.server = fuzzed
    run_state_machine_as_test(
        Frames,
        settings=settings(
            max_examples=120,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    fuzzed.idle(within=5.0)
