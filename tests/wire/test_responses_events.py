"""Events of a Responses stream: the API's shapes, and numbers that follow from the log alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types import responses as api
from pydantic import BaseModel

from causerie.chat.log import Numbered, ResponseLog, merge
from causerie.chat.records import Item, ResponseRecord, Status, outcome_of
from causerie.errors import CauserieError, EngineOutOfMemory, InvalidRequest, Overloaded, ShuttingDown
from causerie.types import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Part,
    PrefillProgress,
    Queued,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from causerie.wire.responses_events import ResponseEvents, StreamEvent, as_sse, error_event
from causerie.wire.responses_object import deleted_object, response_object

MODELS: dict[str, type[BaseModel]] = {
    get_args(model.__annotations__["type"])[0]: model for model in get_args(get_args(api.ResponseStreamEvent)[0])
}
RECORD = ResponseRecord(
    id="resp_1",
    owner="",
    created=1_700_000_000.5,
    model="mödel\u2028",
    parameters={"temperature": 0.5, "metadata": {"a": "b"}},
    input=(Item("msg_in", "user", "Hello"),),
    output_id="msg_out",
    instructions="Help.",
    conversation="conv_1",
)
USAGE = Usage(7, 3, 4)
ENDED = 1_700_000_009.0
DONE = Finished((FinishReason.STOP,), USAGE)
TERMINALS = {"response.completed", "response.incomplete", "response.failed"}


class Names:
    def token_text(self, id: int) -> str:  # noqa: A002
        return f"<{id}>\u2028"

    def token_bytes(self, id: int) -> bytes:  # noqa: A002
        return bytes([id])


def encoder(*, logprobs: bool = False, record: ResponseRecord = RECORD) -> ResponseEvents:
    return ResponseEvents(record, ended=lambda: ENDED, logprobs=Names() if logprobs else None)


def delta(text: str, *tokens: TokenLogprob) -> TextDelta:
    return TextDelta((Part(0, text, 1, tokens),))


def whole(log: Sequence[Event], *, logprobs: bool = False) -> list[StreamEvent]:
    events = encoder(logprobs=logprobs)
    made = events.opening()
    for number, event in enumerate(log, 1):
        made += events.encode(Numbered(number, event))
    return made


def data(events: Sequence[StreamEvent]) -> list[Any]:
    return [orjson.loads(event.data) for event in events]


def numbers(events: Sequence[StreamEvent]) -> list[tuple[int, str]]:
    return [(event.number, event.type.removeprefix("response.")) for event in events]


def text_of(events: Sequence[StreamEvent]) -> str:
    return "".join(each["delta"] for each in data(events) if each["type"] == "response.output_text.delta")


def checked(event: StreamEvent) -> Any:
    """The event as openai's own model of it, with no member that the model does not know but ours."""
    body = orjson.loads(event.data)
    assert (body["type"], body["sequence_number"]) == (event.type, event.number)
    model = MODELS[event.type].model_validate(body)
    assert set(model.model_extra or ()) <= {"queue_position", "estimated_wait"}
    response = getattr(model, "response", None)
    assert response is None or set(response.model_extra) == {"store"}
    return model


def test_numbers_of_a_whole_stream() -> None:
    log: list[Event] = [
        Queued(1),
        PrefillProgress(5, 9),
        PrefillProgress(9, 9),
        Started(9),
        delta("He"),
        delta(""),
        delta("y"),
        DONE,
    ]
    assert numbers(whole(log)) == [
        (0, "created"),
        (1, "queued"),
        (2, "in_progress"),
        (5, "output_item.added"),
        (6, "content_part.added"),
        (7, "output_text.delta"),
        (9, "output_text.delta"),
        (10, "output_text.done"),
        (11, "content_part.done"),
        (12, "output_item.done"),
        (13, "completed"),
    ]


def test_short_prompt_is_in_progress_when_it_starts() -> None:
    assert numbers(whole([Started(9), delta("a"), DONE]))[:4] == [
        (0, "created"),
        (1, "in_progress"),
        (2, "output_item.added"),
        (3, "content_part.added"),
    ]


def test_response_that_never_started_has_its_end_alone() -> None:
    log: list[Event] = [Queued(3), Finished((FinishReason.CANCELLED,), Usage(5))]
    assert numbers(whole(log)) == [(0, "created"), (1, "queued"), (7, "incomplete")]


@pytest.mark.parametrize(
    ("end", "type_", "status", "details"),
    [
        (DONE, "response.completed", "completed", None),
        (Finished((FinishReason.LENGTH,), USAGE), "response.incomplete", "incomplete", {"reason": "max_output_tokens"}),
        (Finished((FinishReason.CANCELLED,), USAGE), "response.incomplete", "cancelled", None),
        (Failed(EngineOutOfMemory("No room."), USAGE), "response.failed", "failed", None),
    ],
)
def test_each_end_is_said_truthfully(end: Event, type_: str, status: str, details: Any) -> None:
    events = data(whole([Started(7), delta("Hi"), end]))
    last = events[-1]
    assert last["type"] == type_ and last["response"]["status"] == status
    assert last["response"]["incomplete_details"] == details
    assert last["response"]["completed_at"] == (1_700_000_009 if status == "completed" else None)
    said = "completed" if status == "completed" else "incomplete"
    assert events[-2]["item"]["status"] == said and last["response"]["output"] == [events[-2]["item"]]
    assert events[-4]["text"] == events[-3]["part"]["text"] == "Hi"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineOutOfMemory("No room."), "server_error"),
        (InvalidRequest("Too long.", param="input"), "invalid_prompt"),
        (Overloaded("Full."), "rate_limit_exceeded"),
        (ShuttingDown("Going."), "server_error"),
        (CauserieError("Broken."), "server_error"),
    ],
)
def test_failure_has_a_code_that_the_api_knows_and_ours_beside_it(error: CauserieError, code: str) -> None:
    last = whole([Failed(error)])[-1]
    assert checked(last).response.error.model_dump(exclude_none=True) == {
        "code": code,
        "message": error.message,
        "type": error.code,
    } | ({"param": "input"} if error.param else {})


def test_queue_position_is_beside_the_response() -> None:
    queued = data(whole([Queued(4, 1.5)]))[1]
    assert (queued["queue_position"], queued["estimated_wait"]) == (4, 1.5)
    assert queued["response"]["status"] == "queued"


def test_background_response_is_created_in_the_queue() -> None:
    record = ResponseRecord("resp_1", "", 1.0, "m", {}, (), "msg_out", background=True)
    (created,) = data(encoder(record=record).opening())
    assert created["response"]["status"] == "queued" and created["response"]["background"] is True


def test_object_says_what_was_asked_and_what_came_of_it() -> None:
    last = data(whole([Started(7), delta("Hi"), DONE]))[-1]["response"]
    assert last["conversation"] == {"id": "conv_1"} and last["instructions"] == "Help."
    assert (last["temperature"], last["metadata"], last["model"]) == (0.5, {"a": "b"}, "mödel\u2028")
    assert (last["top_p"], last["truncation"], last["created_at"]) == (1.0, "disabled", 1_700_000_000)
    assert last["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }


def test_stored_response_looks_as_it_did_at_the_end_of_its_stream() -> None:
    log: list[Event] = [Started(7), delta("H"), delta("i"), DONE]
    record = replace(RECORD, outcome=outcome_of(log, ENDED))
    assert response_object(record) == data(whole(log))[-1]["response"]
    assert deleted_object("resp_1") == {"id": "resp_1", "object": "response", "deleted": True}


def test_answer_without_a_word_is_no_output() -> None:
    events = data(whole([Started(7), delta(""), DONE]))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.completed"]
    assert events[-1]["response"]["output"] == []


def test_logprobs_are_told_with_the_delta_and_at_the_end() -> None:
    seven = TokenLogprob(7, -0.5, ((8, float("-inf")),))
    events = whole([Started(7), delta("", seven), delta("a", seven), DONE], logprobs=True)
    bodies = data(events)
    entry = {"token": "<7>\u2028", "logprob": -0.5, "bytes": [7]}
    entry["top_logprobs"] = [{"token": "<8>\u2028", "logprob": -9999.0, "bytes": [8]}]
    assert [body["logprobs"] for body in bodies[4:7]] == [[entry], [entry], [entry, entry]]
    assert bodies[-1]["response"]["output"][0]["content"][0]["logprobs"] == [entry, entry]
    for event in events:
        checked(event)


def test_sse_names_every_event_and_tells_progress_in_comments() -> None:
    events = encoder()
    parts = [as_sse(events.opening())]
    log: list[Event] = [PrefillProgress(5, 9), PrefillProgress(9, 9), Started(9), delta("a\u2028\x85"), DONE]
    parts += [events.sse(Numbered(number, event)) for number, event in enumerate(log, 1)]
    assert parts[2] == b": prefill 9/9\n\n" and parts[1].endswith(b": prefill 5/9\n\n")
    blocks = [block for block in b"".join(parts).decode().split("\n\n") if block and not block.startswith(":")]
    assert all(len(block.splitlines()) == 2 for block in blocks)
    assert blocks == [f"event: {event.type}\ndata: {event.data.decode()}" for event in whole(log)]


def test_broken_stream_ends_with_a_flat_error() -> None:
    model = checked(error_event(InvalidRequest("No.", param="x"), 12))
    assert (model.code, model.message, model.param) == ("invalid_value", "No.", "x")


def test_number_that_was_not_given_yet_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        encoder().resume([Started(9), delta("a")], 5)
    assert caught.value.param == "starting_after" and "number 4" in caught.value.message


def test_client_that_has_everything_gets_nothing() -> None:
    log: list[Event] = [Started(9), delta("a"), DONE]
    events = encoder()
    assert events.resume(log, 8) == 3 and events.opening() == []


TOKENS = st.lists(st.builds(TokenLogprob, st.integers(0, 255), st.floats(-50, 0)), max_size=2)
DELTAS = st.builds(lambda text, tokens: delta(text, *tokens), st.text(max_size=4), TOKENS)
FAILURES: list[Event] = [Failed(EngineOutOfMemory("No room.")), Failed(ShuttingDown("Going."), USAGE)]
CUT_SHORT: list[Event] = [Finished((FinishReason.CANCELLED,), USAGE), *FAILURES]
ENDS: list[Event] = [DONE, Finished((FinishReason.LENGTH,), USAGE), *CUT_SHORT]
PROGRESS = st.lists(st.builds(PrefillProgress, st.integers(0, 9), st.just(9)), max_size=3)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    log: list[Event] = [Queued(draw(st.integers(0, 9)))] if draw(st.booleans()) else []
    log += draw(PROGRESS)
    if draw(st.booleans()):
        return [*log, draw(st.sampled_from(CUT_SHORT))]
    return [*log, Started(9), *draw(st.lists(DELTAS, max_size=8)), draw(st.sampled_from(ENDS))]


def read(log: Sequence[Event], after: int, lags: Sequence[bool]) -> list[Numbered]:
    """What a real reader gets behind ``after``, if it comes late for the events that ``lags`` marks."""

    async def collect() -> list[Numbered]:
        source = ResponseLog("r", on_cancel=lambda cause: None, on_abandoned=lambda log: None)
        for event in log[:after]:
            source.append(event)
        got: list[Numbered] = []
        async with source.reader(after) as reader:
            for index, event in enumerate(log[after:]):
                source.append(event)
                if not lags[index % len(lags)]:
                    got += [await anext(reader)] if not got or got[-1].number < len(source) else []
                    while got[-1].number < len(source):
                        got.append(await anext(reader))
            return got + [numbered async for numbered in reader]

    return asyncio.run(collect())


LAGS = st.lists(st.booleans(), min_size=1, max_size=5)


@settings(deadline=None)
@given(logs(), st.booleans())
def test_every_event_is_what_the_apis_client_expects(log: list[Event], logprobs: bool) -> None:
    events = whole(log, logprobs=logprobs)
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(checked(event))
    assert [event.number for event in events] == sorted({event.number for event in events})
    assert [event.type for event in events if event.type in TERMINALS] == [events[-1].type]
    text = merge(event for event in log if isinstance(event, TextDelta)).parts
    assert text_of(events) == "".join(part.text for part in text)


@settings(deadline=None)
@given(logs(), st.booleans(), st.data())
def test_resumed_stream_is_the_rest_of_the_whole(log: list[Event], logprobs: bool, choose: st.DataObject) -> None:
    events = whole(log, logprobs=logprobs)
    after = choose.draw(st.integers(0, events[-1].number))
    again = encoder(logprobs=logprobs)
    position = again.resume(log, after)
    rest = again.opening()
    for number, event in enumerate(log[position:], position + 1):
        rest += again.encode(Numbered(number, event))
    assert rest == [event for event in events if event.number > after]


@settings(deadline=None)
@given(logs(), LAGS, LAGS, st.booleans(), st.data())
def test_cut_anywhere_and_resumed_nothing_is_lost_or_doubled(
    log: list[Event], first: list[bool], second: list[bool], logprobs: bool, choose: st.DataObject
) -> None:
    begun = encoder(logprobs=logprobs)
    seen = begun.opening()
    for numbered in read(log, 0, first):
        seen += begun.encode(numbered)
    seen = seen[: choose.draw(st.integers(1, len(seen)))]
    again = encoder(logprobs=logprobs)
    position = again.resume(log, seen[-1].number)
    joined = seen + again.opening()
    for numbered in read(log, position, second):
        joined += again.encode(numbered)
    events = whole(log, logprobs=logprobs)
    assert [event.number for event in joined] == sorted({event.number for event in joined})
    delta_type = "response.output_text.delta"
    assert [one for one in joined if one.type != delta_type] == [one for one in events if one.type != delta_type]
    assert text_of(joined) == text_of(events)


@settings(deadline=None)
@given(logs(), LAGS, st.booleans())
def test_server_sent_events_are_the_same_events(log: list[Event], lags: list[bool], logprobs: bool) -> None:
    got = read(log, 0, lags)
    one, other = encoder(logprobs=logprobs), encoder(logprobs=logprobs)
    blocks = [other.sse(numbered) for numbered in got]
    plain = b"".join(blocks).replace(b": prefill 9/9\n\n", b"")
    plain = b"\n\n".join(block for block in plain.split(b"\n\n") if not block.startswith(b": prefill"))
    assert plain == b"".join(as_sse(one.encode(numbered)) for numbered in got)


def test_status_words_are_the_apis() -> None:
    assert {status.value for status in Status} == set(get_args(api.ResponseStatus))
