"""Who may come back to a stream, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from causerie.chat import streams as module
from causerie.chat.log import ResponseLog
from causerie.chat.streams import MAX_EXPIRED, Streams
from causerie.errors import ResponseNotFound, StreamExpired
from causerie.types import (
    CancelCause,
    Finished,
    FinishReason,
    GenerationRequest,
    OnDisconnect,
    SamplingParams,
    TextPrompt,
    Usage,
)
from tests.support.service import until

END = Finished((FinishReason.STOP,), Usage())


class Kept:
    def __init__(self, streams: Streams, id_: str = "r", *, owner: str = "", grace: float | None = None) -> None:
        self.cancelled: list[CancelCause] = []
        self.log = ResponseLog(
            id_, owner=owner, on_cancel=self.cancelled.append, on_abandoned=lambda log: None, outlives_readers=True
        )
        streams.keep(
            self.log,
            GenerationRequest(id_, TextPrompt("x"), SamplingParams(1), owner=owner, on_disconnect=OnDisconnect(grace)),
        )


async def test_another_owner_does_not_find_it() -> None:
    streams = Streams(window=60, capacity=8)
    kept = Kept(streams, owner="alice")
    assert streams.find("alice", "r").log is kept.log
    for owner in ("", "bob"):
        with pytest.raises(ResponseNotFound):
            streams.find(owner, "r")
    streams.close()


async def test_only_the_latest_ended_ones_are_kept() -> None:
    streams = Streams(window=60, capacity=2)
    for name in "abc":
        log = Kept(streams, name).log
        log.append(END)
        streams.ended(log)
    with pytest.raises(StreamExpired):
        streams.find("", "a")
    assert streams.find("", "b") and streams.find("", "c")
    streams.close()


async def test_ids_of_expired_ones_are_not_remembered_without_bound() -> None:
    streams = Streams(window=60, capacity=0)
    for index in range(MAX_EXPIRED + 1):
        log = Kept(streams, str(index)).log
        log.append(END)
        streams.ended(log)
    with pytest.raises(ResponseNotFound):
        streams.find("", "0")
    with pytest.raises(StreamExpired):
        streams.find("", "1")


async def test_an_id_is_taken_until_its_stream_has_expired() -> None:
    streams = Streams(window=0.02, capacity=8)
    first = Kept(streams).log
    assert streams.has("", "r") and not streams.has("ada", "r")
    first.append(END)
    streams.ended(first)
    assert streams.has("", "r")
    await until(lambda: not streams.has("", "r"))
    second = Kept(streams).log
    assert streams.find("", "r").log is second
    streams.close()


async def test_one_that_goes_on_is_never_cancelled_for_want_of_readers() -> None:
    streams = Streams(window=60, capacity=8)
    kept = Kept(streams, grace=None)
    assert streams.abandoned(kept.log)
    await asyncio.sleep(0.05)
    assert kept.cancelled == []
    streams.close()


async def test_a_second_leaving_begins_a_new_grace() -> None:
    streams = Streams(window=60, capacity=8)
    kept = Kept(streams, grace=0.2)
    streams.abandoned(kept.log)
    await asyncio.sleep(0.12)
    reader = kept.log.reader()
    await reader.aclose()
    streams.abandoned(kept.log)
    await asyncio.sleep(0.12)
    assert kept.cancelled == []
    await asyncio.sleep(0.2)
    assert kept.cancelled == [CancelCause.CLIENT]


async def test_one_that_is_read_through_another_process_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLLOWED", 0.3)
    streams = Streams(window=60, capacity=8)
    kept, alone = Kept(streams, "a", grace=0.05), Kept(streams, "b", grace=0.05)
    for each in (kept, alone):
        streams.abandoned(each.log)
    streams.followed(kept.log)
    await asyncio.sleep(0.2)
    assert alone.cancelled == [CancelCause.CLIENT] and kept.cancelled == []
    streams.followed(kept.log)
    await asyncio.sleep(0.2)
    assert kept.cancelled == []
    await asyncio.sleep(0.3)
    assert kept.cancelled == [CancelCause.CLIENT]
    streams.close()
