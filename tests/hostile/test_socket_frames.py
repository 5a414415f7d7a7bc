"""WebSocket frames that no client should send: case 37, promises 1 and 4."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import pytest

from tests.hostile.conftest import Serve
from tests.support.process import ServeProcess, memory_peak, reset_memory_peak, serve_process
from tests.support.raw import BINARY, CLOSE, PING, PONG, TEXT, ChatSocket, frame
from tests.support.served import Served, until

CONTINUATION = 0
MIB = 2**20
LIMIT = MIB
"""``max_frame_bytes`` as it is by default."""


def endless(_: Sequence[int]) -> Iterable[int]:
    return itertools.cycle(b"na ")


@pytest.fixture(scope="module")
def process() -> Iterator[ServeProcess]:
    with serve_process() as running:
        with ChatSocket(running.address) as socket:
            assert socket.open().turn("Hi")
        yield running


def header(opcode: int, length: int, *, fin: bool = True) -> bytes:
    """A frame's head that promises ``length`` bytes."""
    return bytes([(0x80 if fin else 0) | opcode, 0x80 | 127]) + struct.pack("!Q", length) + bytes(4)


def text(data: bytes, *, fin: bool = True) -> bytes:
    return frame(TEXT, data, fin=fin)


def more(data: bytes, *, fin: bool = False) -> bytes:
    return frame(CONTINUATION, data, fin=fin)


HALF = "é".encode()[:1]

VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "frame over the limit, by its head alone": (header(TEXT, LIMIT + 1), 1009),
    "frame of 2^63 - 1": (header(TEXT, 2**63 - 1), 1009),
    "frame of 2^64 - 1": (header(TEXT, 2**64 - 1), 1009),
    "message over the limit": (text(b"x" * (LIMIT // 2), fin=False) + more(b"x" * (LIMIT // 2)) + more(b"x"), 1009),
    "empty fragments without end": (text(b"", fin=False) + more(b"") * 5000, 1009),
    "small fragments without end": (text(b"x", fin=False) + more(b"x") * 5000, 1009),
    "binary": (frame(BINARY, b"Hi"), 1003),
    "binary in fragments": (frame(BINARY, b"Hi", fin=False) + more(b"!", fin=True), 1003),
    "unmasked": (frame(TEXT, b"Hi", masked=False), 1002),
    "unmasked ping": (frame(PING, b"", masked=False), 1002),
    "RSV1, as if compressed": (frame(TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", rsv=4), 1002),
    "RSV2": (frame(TEXT, b"Hi", rsv=2), 1002),
    "RSV3": (frame(TEXT, b"Hi", rsv=1), 1002),
    "RSV1 on a ping": (frame(PING, b"", rsv=4), 1002),
    **{f"opcode {opcode}": (frame(opcode, b"Hi"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "close of 126 bytes": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "fragmented ping": (frame(PING, b"", fin=False), 1002),
    "continuation of nothing": (more(b"Hi", fin=True), 1002),
    "text within a message": (text(b"Hi", fin=False) + text(b"Hi"), 1002),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    **{f"close {code}": (frame(CLOSE, struct.pack("!H", code)), 1002) for code in (0, 999, 1004, 1005, 1006, 2999)},
    "close with a bad reason": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "bad UTF-8": (text(b"\xff"), 1007),
    "character cut short": (text(b"Hi " + HALF), 1007),
    "surrogate": (text(b"\xed\xa0\x80"), 1007),
    "overlong": (text(b"\xc0\xaf"), 1007),
    "bad UTF-8 in the second fragment": (text(b"Hi", fin=False) + more(b"\xff", fin=True), 1007),
    "character cut short at the message's end": (text(b"Hi", fin=False) + more(HALF, fin=True), 1007),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_violation_is_closed_with_its_code(steady: Served, data: bytes, code: int) -> None:
    """Case 37: one close frame with the standard's code, nothing after it, and nobody's turn is answered."""
    before = len(steady.watch.prompts)
    assert steady.socket().send(data).close_code() == code
    assert len(steady.watch.prompts) == before


@pytest.mark.parametrize("name", ["bad UTF-8", "unmasked", "binary", "frame of 2^63 - 1", "RSV1, as if compressed"])
def test_violation_in_mid_turn_frees_the_slot_and_sends_no_sentinel(serve: Serve, name: str) -> None:
    """Case 37, promises 1 and 2."""
    data, code = VIOLATIONS[name]
    server = serve(endless, step_seconds=0.01)
    socket = server.socket().text("Hi")
    socket.frame()
    socket.send(data)
    server.idle(within=1.0)
    assert socket.close_code() == code


def test_character_split_over_fragments_is_whole(steady: Served) -> None:
    """Case 37: fragments may end inside of a character, and pings may come between them."""
    socket = steady.socket()
    family = "👨‍👩‍👧 é".encode()
    socket.send(text(family[:1], fin=False))
    for byte in family[1:-1]:
        socket.send(more(bytes([byte])) + frame(PING, b"?"))
    socket.send(more(family[-1:], fin=True))
    frames = [socket.frame() for _ in range(len(family))]
    assert frames[:-2] == [(PONG, b"?")] * (len(family) - 2)
    assert frames[-2:] == [(TEXT, b"ok"), (TEXT, b"<<Response Finished>>")]
    last = list(steady.watch.prompts.values())[-1]
    assert family in bytes(id_ for id_ in last if id_ < 256)


def test_largest_message_is_taken_whole(steady: Served) -> None:
    """Case 37: what is within the limit is no violation, though it is more than the context window holds."""
    socket = steady.socket()
    socket.send(text(b"x" * (LIMIT // 2), fin=False) + more(b"x" * (LIMIT // 2), fin=True))
    assert socket.close_code() == 1009


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=99, x-webkit-deflate-frame, bbf-usp-protocol",
    ],
)
def test_compression_is_not_agreed_to(steady: Served, offer: str) -> None:
    """Case 37: ``open`` fails on any extension in the server's answer; a compressed frame is then a violation."""
    socket = steady.bare_socket().open({"Sec-WebSocket-Extensions": offer})
    assert socket.turn("Hi") == "ok"
    assert socket.send(frame(TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", rsv=4)).close_code() == 1002


HANDSHAKES = {
    "no version": {"Sec-WebSocket-Version": ""},
    "old version": {"Sec-WebSocket-Version": "8"},
    "short key": {"Sec-WebSocket-Key": "abc"},
    "key that is no base64": {"Sec-WebSocket-Key": "?" * 24},
    "foreign origin": {"Origin": "http://evil.example"},
    "null origin": {"Origin": "null"},
    "two hosts": {"Host": "a b"},
}


@pytest.mark.parametrize("headers", HANDSHAKES.values(), ids=HANDSHAKES)
def test_bad_handshake_is_refused_and_the_connection_closed(steady: Served, headers: dict[str, str]) -> None:
    """Case 37, before there is a socket."""
    socket = steady.bare_socket().ask(headers)
    status, _ = socket.head()
    assert 400 <= status < 500
    socket.rest()
    assert socket.ended()


def test_turns_without_end_are_closed_at_the_bound(serve: Serve) -> None:
    """Promise 4: turns that wait for their answers have a cap."""
    server = serve(endless, step_seconds=0.01)
    socket = server.socket()
    socket.send(text(b"Hi") * 5000)
    assert socket.close_code() == 1013
    server.idle(within=1.0)
    assert len(server.watch.prompts) <= 1


def flood(socket: ChatSocket, piece: bytes, total: int) -> int:
    """Send and never read, until the server takes no more; how many bytes it took."""
    socket.socket.settimeout(0.5)
    sent = 0
    try:
        while sent < total:
            sent += socket.socket.send(piece)
    except (ConnectionError, TimeoutError):
        pass
    return sent


@pytest.mark.parametrize(
    ("piece", "total"),
    [
        pytest.param(frame(PING, b"x" * 125) * 500, 24 * MIB, id="pings"),
        pytest.param(frame(PING) * 10_000, MIB, id="empty pings"),
        pytest.param(frame(PONG, b"x" * 125) * 500, 24 * MIB, id="pongs"),
        pytest.param(more(b"x" * 1000) * 60, 24 * MIB, id="fragments"),
    ],
)
def test_flood_is_bounded_in_memory_and_hurts_nobody(process: ServeProcess, piece: bytes, total: int) -> None:
    """Case 37, promise 4: pings whose pongs nobody reads, pongs that nobody asked for, fragments without end."""
    with ChatSocket(process.address, receive_buffer=4096) as socket, ChatSocket(process.address) as other:
        socket.open()
        other.open()
        reset_memory_peak(process.pid)
        before = memory_peak(process.pid)
        start = text(b"x", fin=False) if piece[0] == 0 else b""
        socket.send(start)
        flood(socket, piece, total)
        assert memory_peak(process.pid) - before < 16 * MIB
        assert "You said: Hi" in other.turn("Hi")


@pytest.mark.parametrize("piece", [frame(PING), frame(PONG), text(b"")], ids=["pings", "pongs", "turns"])
def test_flood_of_the_smallest_frames_leaves_others_their_turn(steady: Served, piece: bytes) -> None:
    """Case 37, promise 3. The best of five, since the machine may be busy otherwise."""
    stalls = []
    for _ in range(5):
        with steady.heart() as heart, suppress(OSError), steady.socket(timeout=1.0) as socket:
            socket.send(piece * 40_000 + frame(CLOSE, b"\x03\xe8"))
            socket.rest()
        stalls.append(heart.longest_stall)
        if stalls[-1] < 0.05:
            return
    raise AssertionError(f"the event loop stood still for {min(stalls):.3f} s")


def test_pings_are_answered_in_order_while_an_answer_streams(serve: Serve) -> None:
    """Case 37: the flood's polite sister."""
    server = serve(lambda _: b"a" * 200, step_seconds=0.002)
    socket = server.socket().text("Hi")
    socket.send(b"".join(frame(PING, struct.pack("!I", number)) for number in range(500)))
    pongs, said = [], b""
    while True:
        opcode, payload = socket.frame()
        if opcode == PONG:
            pongs.append(payload)
        elif payload == b"<<Response Finished>>":
            break
        else:
            said += payload
    assert said == b"a" * 200
    assert pongs == [struct.pack("!I", number) for number in range(500)]


def test_frames_after_the_close_are_not_looked_at(steady: Served) -> None:
    """Case 37: a turn after a close frame is no turn."""
    before = len(steady.watch.prompts)
    socket = steady.socket().send(frame(CLOSE, b"\x03\xe8") + text(b"Hi") * 100)
    assert socket.close_code() == 1000
    assert len(steady.watch.prompts) == before
    until(lambda: steady.service.running == 0, within=1.0)
