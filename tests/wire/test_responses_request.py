"""Bodies and queries of the Responses API: what is understood, and what is refused by name."""

from __future__ import annotations

from itertools import count
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseIncludable
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from causerie.chat.records import Item
from causerie.errors import InvalidRequest, ModelNotFound, UnsupportedParameter
from causerie.types import ChatPrompt, Message, OnDisconnect
from causerie.wire.queries import (
    LOGPROBS,
    ListQuery,
    ResponseQuery,
    check_includable,
    parse_item_query,
    parse_list_query,
    parse_response_query,
)
from causerie.wire.responses_request import ResponseCall, parse_response
from causerie.wire.sampling import Limits

LIMITS = Limits(model="org/model", default_max_tokens=1024, max_choices=64, vocab_size=259, context_window=8192)
TEXT = {"format": {"type": "text"}, "verbosity": "medium"}


def parse(body: dict[str, Any]) -> ResponseCall:
    numbers = count(1)
    return parse_response(orjson.dumps(body), LIMITS, lambda: f"msg_{next(numbers)}")


def call(**fields: Any) -> ResponseCall:
    return parse({"input": "Hello"} | fields)


def refusal(body: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    assert len(caught.value.message) < 500
    return caught.value


def test_smallest_body_has_the_apis_defaults() -> None:
    got = call()
    assert got.input == (Item("msg_1", "user", "Hello"),)
    assert got.prompt() == ChatPrompt((Message("user", "Hello"),), field="input")
    assert (got.store, got.background, got.stream, got.on_disconnect) == (True, False, False, None)
    assert (got.sampling.max_tokens, got.sampling.temperature, got.sampling.logprobs) == (1024, 1.0, None)
    assert got.parameters == {"text": TEXT}


def test_every_parameter_reaches_the_engine_and_is_echoed() -> None:
    named: dict[str, Any] = {
        "max_output_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "seed": -3,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [5, 6],
        "stop": "END",
        "top_logprobs": 3,
        "on_disconnect": "grace(1.5)",
        "metadata": {"a": "b"},
        "user": "u",
        "store": True,
        "truncation": "auto",
    }
    got = call(**named, include=[LOGPROBS])
    sampling = got.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.0, 0.5, 40)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.presence_penalty) == (0.1, 1.1, -1.0)
    assert (sampling.frequency_penalty, sampling.seed, sampling.min_tokens) == (1.5, -3, 2)
    assert sampling.ignore_eos and sampling.stop_token_ids == {5, 6} and sampling.logprobs == 3
    assert got.stop == ("END",) and got.on_disconnect == OnDisconnect(1.5) and got.overflow == "drop_oldest"
    assert got.parameters == named | {"text": TEXT}


def test_what_a_client_was_answered_may_come_back_as_input() -> None:
    answer: dict[str, Any] = {
        "id": "msg_old",
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "phase": None,
        "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": [], "parsed": None}],
    }
    easy = {"role": "user", "content": "Hello"}
    typed = {
        "type": "message",
        "role": "developer",
        "content": [{"type": "input_text", "text": "Be "}, {"type": "input_text", "text": "brief."}],
    }
    got = call(input=[typed, easy, answer, easy], instructions="Help.")
    assert got.input == (
        Item("msg_1", "developer", "Be brief."),
        Item("msg_2", "user", "Hello"),
        Item("msg_3", "assistant", "Hi", "incomplete"),
        Item("msg_4", "user", "Hello"),
    )
    assert [one.role for one in got.prompt().messages] == ["system", "system", "user", "assistant", "user"]


def test_prompt_is_the_instructions_the_history_and_the_input() -> None:
    got = call(instructions="New.", previous_response_id="resp_1")
    history = [Item("a", "user", "One"), Item("b", "assistant", "Two")]
    assert got.request("r", "", history).prompt == ChatPrompt(
        (Message("system", "New."), Message("user", "One"), Message("assistant", "Two"), Message("user", "Hello")),
        field="input",
    )


@pytest.mark.parametrize("body", [{"conversation": "conv_1"}, {"previous_response_id": "resp_1", "input": []}])
def test_continuation_needs_no_input(body: dict[str, Any]) -> None:
    assert parse(body).input == ()


@pytest.mark.parametrize("value", ["conv_1", {"id": "conv_1"}])
def test_conversation_is_an_id_or_holds_one(value: Any) -> None:
    assert call(conversation=value).conversation == "conv_1"


def test_two_ways_to_continue_are_refused_by_both_names() -> None:
    error = refusal({"input": "x", "previous_response_id": "resp_1", "conversation": "conv_1"})
    assert "'previous_response_id'" in error.message and "'conversation'" in error.message


@pytest.mark.parametrize(
    ("value", "expected"),
    [("cancel", 0.0), ("continue", None), ("grace(0)", 0.0), ("grace(30)", 30.0), ("grace(3600)", 3600.0)],
)
def test_on_disconnect(value: str, expected: float | None) -> None:
    assert call(on_disconnect=value).on_disconnect == OnDisconnect(expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 0.0), ({"background": True}, None), ({"background": True, "on_disconnect": "continue"}, None)],
)
def test_response_in_the_background_goes_on(fields: dict[str, Any], expected: Any) -> None:
    request = call(**fields).request("r", "alice")
    assert (request.id, request.owner, request.on_disconnect) == ("r", "alice", OnDisconnect(expected))


@pytest.mark.parametrize(
    "harmless",
    [
        {"service_tier": "auto"},
        {"tools": []},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
        {"reasoning": {"effort": "none", "summary": None}},
        {"reasoning": {}},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"include": ["reasoning.encrypted_content"]},
        {"top_logprobs": 0},
        {"stream_options": {"include_obfuscation": False}},
        {"prompt_cache_retention": "24h"},
        {"truncation": "disabled"},
        {"max_tool_calls": None, "prompt": None, "conversation": None, "generate": True},
    ],
)
def test_field_that_changes_nothing_is_accepted(harmless: dict[str, Any]) -> None:
    got = call(**harmless)
    assert (got.sampling, got.overflow, got.input) == (call().sampling, "error", call().input)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"background": True, "on_disconnect": "cancel"}, "on_disconnect"),
        ({"background": True, "on_disconnect": "grace(5)"}, "on_disconnect"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"colour": "red"}}, "text.colour"),
        ({"text": "json"}, "text"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"generate": False}, "generate"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"include": ["no.such"]}, "include"),
        ({"include": "message.output_text.logprobs"}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"user": 3}, "user"),
        ({"instructions": ["x"]}, "instructions"),
        ({"store": False, "background": True}, "store"),
        ({"store": False, "conversation": "conv_1"}, "store"),
        ({"conversation": {"name": "x"}}, "conversation.name"),
        ({"conversation": {}}, "conversation.id"),
        ({"conversation": 3}, "conversation"),
        ({"previous_response_id": ["resp"]}, "previous_response_id"),
        ({"on_disconnect": "grace(-1)"}, "on_disconnect"),
        ({"on_disconnect": "grace(86401)"}, "on_disconnect"),
        ({"on_disconnect": 5}, "on_disconnect"),
        ({"n": 2}, "n"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["Hello"]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": {"a": 1}, "content": "x"}]}, "input[0].role"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": "x", "status": "done"}]}, "input[0].status"),
        ({"input": [{"role": "user", "content": "x", "name": "n"}]}, "input[0].name"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"),
    ],
)
def test_field_that_cannot_be_honoured_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    assert refusal({"input": "Hello"} | body).param == param


def test_other_model_is_refused() -> None:
    with pytest.raises(ModelNotFound):
        call(model="gpt-4o")


def test_every_parameter_of_the_api_is_known() -> None:
    for name in ResponseCreateParamsBase.__annotations__:
        try:
            call(**{name: "?"})
        except (InvalidRequest, ModelNotFound) as error:
            assert "Unknown" not in error.message


def test_near_miss_gets_a_hint() -> None:
    assert "Did you mean 'instructions'?" in refusal({"input": "x", "instruction": "y"}).message
    assert "Did you mean 'max_output_tokens'?" in refusal({"input": "x", "max_tokens": 5}).message


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["auto", "default", "message", "user", "grace(1)"])
)
MEMBERS = st.sampled_from(["type", "role", "content", "text", "id", "format", "x"])
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*ResponseCreateParamsBase.__annotations__, "on_disconnect", "generate", "seed", "stop"])


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_body_is_understood_or_refused(body: dict[str, Any]) -> None:
    try:
        parse(body)
    except (InvalidRequest, ModelNotFound) as error:
        assert error.param is not None


def test_query_of_a_stored_response() -> None:
    assert parse_response_query([]) == ResponseQuery(False, None)
    assert parse_response_query([("stream", "true"), ("starting_after", "7")]) == ResponseQuery(True, 7)
    assert parse_response_query([("include[]", LOGPROBS), ("include_obfuscation", "false")]) == ResponseQuery(
        False, None
    )


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ([("starting_after", "7")], "starting_after"),
        ([("stream", "true"), ("starting_after", "-1")], "starting_after"),
        ([("include", "no.such")], "include"),
        ([("include_obfuscation", "true")], "include_obfuscation"),
        ([("after", "x")], "after"),
    ],
)
def test_query_of_a_stored_response_is_refused_by_name(query: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_response_query(query)
    assert caught.value.param == param


def test_query_of_a_list() -> None:
    assert parse_list_query([]) == ListQuery(None, 20, True)
    pairs = [("after", "msg_1"), ("limit", "100"), ("order", "asc"), ("include", LOGPROBS), ("include[]", LOGPROBS)]
    assert parse_list_query(pairs) == ListQuery("msg_1", 100, False)


@pytest.mark.parametrize(
    ("name", "value"), [("limit", "0"), ("limit", "101"), ("order", "up"), ("include", "x"), ("before", "msg_1")]
)
def test_query_of_a_list_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_list_query([(name, value)])
    assert caught.value.param == name


def test_query_of_an_item_takes_only_what_changes_nothing() -> None:
    parse_item_query([("include[]", LOGPROBS)])
    with pytest.raises(UnsupportedParameter):
        parse_item_query([("limit", "1")])


@pytest.mark.parametrize("name", get_args(ResponseIncludable))
def test_every_includable_of_the_api_is_known(name: str) -> None:
    check_includable(name)


def test_a_schema_is_held_to_and_echoed() -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}, "strict": True}
    call = parse({"input": "x", "text": {"format": wanted}})
    assert call.sampling.json_schema is not None
    assert call.parameters["text"] == {"format": wanted, "verbosity": "medium"}


def test_a_bad_schema_is_refused_by_its_place() -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": {"type": "nonsense"}}
    assert (refusal({"input": "x", "text": {"format": wanted}}).param or "").startswith("text.format.schema")
