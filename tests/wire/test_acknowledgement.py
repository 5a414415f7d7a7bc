"""What was shown of an answer: whatever is acknowledged and whenever it ends, that much is kept and no more."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.chat.event_codec import decode, encode
from causerie.chat.log import Numbered, ResponseLog
from causerie.chat.records import ResponseRecord, Status, interruption, outcome_of
from causerie.errors import EngineError, InvalidRequest, ResponseNotActive
from causerie.types import (
    Failed,
    Finished,
    FinishReason,
    Part,
    PrefillProgress,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from causerie.wire.acknowledgement import Shown, text_shown
from causerie.wire.responses_events import ResponseEvents

RECORD = ResponseRecord("resp_1", "", 0.0, "m", {}, (), "msg_1")
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=12)
ENDS: dict[str, Finished | Failed] = {
    "stop": Finished((FinishReason.STOP,), Usage()),
    "length": Finished((FinishReason.LENGTH,), Usage()),
    "cancelled": Finished((FinishReason.CANCELLED,), Usage()),
    "steered": Finished((FinishReason.STEERED,), Usage()),
    "failed": Failed(EngineError("It broke.")),
}


def log_of(*texts: str) -> ResponseLog:
    log = ResponseLog("resp_1", on_cancel=lambda _: None, on_abandoned=lambda _: None)
    log.append(PrefillProgress(1, 2))
    log.append(Started(2))
    for text in texts:
        log.append(TextDelta((Part(0, text, 1),), log.acknowledged))
    return log


def numbered(log: ResponseLog) -> dict[int, int]:
    """The characters that a client has who has been sent an event, by its sequence number."""
    events, had, known = ResponseEvents(RECORD, ended=lambda: 0.0), 0, {0: 0}
    for item in log.history():
        said = len(item.event.parts[0].text) if isinstance(item.event, TextDelta) else 0
        for made in events.encode(item):
            had += said if made.type == "response.output_text.delta" else 0
            known[made.number] = had
    return known


@given(TEXTS, st.data())
def test_a_number_stands_for_the_text_that_was_sent_up_to_it(texts: list[str], data: st.DataObject) -> None:
    log = log_of(*texts)
    for number, had in sorted(numbered(log).items()):
        if data.draw(st.booleans()):
            assert text_shown(Shown(number, None), log, len(log)) == had


@given(TEXTS, st.integers(0, 12), st.data())
def test_nothing_beyond_what_was_sent_is_taken(texts: list[str], sent: int, data: st.DataObject) -> None:
    log = log_of(*texts)
    sent = min(sent, len(log))
    text_end = data.draw(st.integers(0, 60))
    had = sum(map(len, texts[: max(0, sent - 2)]))
    if text_end <= had:
        assert text_shown(Shown(None, text_end), log, sent) == text_end
    else:
        with pytest.raises(InvalidRequest):
            text_shown(Shown(None, text_end), log, sent)


@given(TEXTS, st.lists(st.integers(0, 60)))
def test_it_never_goes_back(texts: list[str], ends: list[int]) -> None:
    log = log_of(*texts)
    for text_end in ends:
        before = log.acknowledged
        try:
            log.was_shown(text_shown(Shown(None, text_end), log, len(log)))
        except InvalidRequest:
            assert log.acknowledged == before
        else:
            assert log.acknowledged == text_end >= (before or 0)


def test_after_the_end_nothing_is_taken() -> None:
    log = log_of("abc")
    log.append(ENDS["stop"])
    with pytest.raises(ResponseNotActive):
        text_shown(Shown(None, 1), log, len(log))
    log.was_shown(1)
    assert log.acknowledged is None


@given(TEXTS, st.none() | st.integers(0, 20))
def test_what_a_killed_process_leaves_is_what_was_acknowledged_with_its_last_text(
    texts: list[str], every: int | None
) -> None:
    log = log_of()
    for text in texts:
        if every is not None:
            log.acknowledged = min(log.text_end(len(log)), every)
        log.append(TextDelta((Part(0, text, 1),), log.acknowledged))
    kept = [decode(encode(event)) for event in log.events]
    assert kept == list(log.events)
    outcome = outcome_of([*kept, interruption(kept)], 0.0)
    assert outcome is not None and outcome.status is Status.FAILED
    whole = "".join(texts)
    last = [event for event in kept if isinstance(event, TextDelta)][-1:]
    assert outcome.text == (whole if every is None or not last else whole[: last[0].acknowledged])


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("kept", [None, 0, 1, 4])
@pytest.mark.parametrize("reason", ["cancelled", "steered", "failed"])
def test_the_last_events_tell_what_is_kept(logprobs: bool, kept: int | None, reason: str) -> None:
    class Names:
        def token_text(self, id: int) -> str:  # noqa: A002
            return chr(id)

        def token_bytes(self, id: int) -> bytes:  # noqa: A002
            return chr(id).encode()

    end = replace(ENDS[reason], kept=kept)
    events = ResponseEvents(RECORD, ended=lambda: 1.0, logprobs=Names() if logprobs else None)
    told = []
    deltas = [TextDelta((Part(0, letter, 1, (TokenLogprob(ord(letter), -1.0),)),)) for letter in "añb🦁c"]
    for number, event in enumerate(itertools.chain([Started(1)], deltas, [end]), 1):
        told += events.encode(Numbered(number, event))
    done, _, item, last = [made.data.decode() for made in told[-4:]]
    text = "añb🦁c"[:kept]
    assert f'"text":"{text}"' in done and f'"text":"{text}"' in item
    assert (f'"text":"{text}"' in last) == bool(text)
    assert done.count('"logprob":') == (len(text) if logprobs else 0)
