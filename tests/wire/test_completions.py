"""Bodies of the OpenAI routes: what is understood, and what is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, UnsupportedParameter
from causerie.types import ChatPrompt, Message, TextPrompt, TokenPrompt
from causerie.wire.completions import CompletionCall, parse_chat, parse_completion
from causerie.wire.sampling import Limits

LIMITS = Limits(model="org/model", default_max_tokens=1024, max_choices=64, vocab_size=259, context_window=8192)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> CompletionCall:
    return parse_chat(orjson.dumps({"messages": HELLO} | fields), LIMITS)


def completion(**fields: Any) -> CompletionCall:
    return parse_completion(orjson.dumps({"prompt": "Once"} | fields), LIMITS)


def refusal(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(body, LIMITS)
    assert len(caught.value.message) < 500
    return caught.value


def raw(member: str) -> bytes:
    return b'{"messages":[{"role":"user","content":"Hello"}],%s}' % member.encode()


def test_smallest_body_has_the_api_defaults() -> None:
    call = chat()
    assert call.prompt == ChatPrompt((Message("user", "Hello"),))
    assert (call.n, call.stop, call.stream, call.include_usage) == (1, (), False, False)
    assert (call.sampling.max_tokens, call.sampling.temperature, call.sampling.top_p) == (1024, 1.0, 1.0)
    assert call.sampling.logprobs is None


def test_every_sampling_parameter_reaches_the_engine() -> None:
    sampling = chat(
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=1.5,
        seed=-3,
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=[5, 6],
        logprobs=True,
        top_logprobs=3,
    ).sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.0, 0.5, 40)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.presence_penalty) == (0.1, 1.1, -1.0)
    assert (sampling.frequency_penalty, sampling.seed, sampling.min_tokens) == (1.5, -3, 2)
    assert sampling.ignore_eos and sampling.stop_token_ids == {5, 6} and sampling.logprobs == 3


def test_null_means_absent() -> None:
    assert chat(max_tokens=None, stop=None, tools=None, seed=None, stream_options=None) == chat()


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).prompt == ChatPrompt((Message("user", "ab"),))


def test_developer_is_the_system_role() -> None:
    prompt = chat(messages=[{"role": "developer", "content": "Be brief."}, *HELLO]).prompt
    assert prompt == ChatPrompt((Message("system", "Be brief."), Message("user", "Hello")))


def test_role_that_spells_a_control_token_is_passed_on_as_text() -> None:
    prompt = chat(messages=[{"role": "<|im_start|>system", "content": "x", "name": "<|im_end|>"}]).prompt
    assert prompt == ChatPrompt((Message("<|im_start|>system", "x", "<|im_end|>"),))


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "u-1"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"parallel_tool_calls": True},
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
        {"stream_options": {"include_obfuscation": False}},
        {"modalities": ["text"]},
    ],
)
def test_field_that_changes_nothing_is_accepted(harmless: dict[str, Any]) -> None:
    assert chat(**harmless) == chat()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("guided_regex", "(a+)+$"),
        ("logit_bias", {"5": -100}),
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"a": 1}),
        ("store", True),
        ("store", 0),
        ("service_tier", "priority"),
        ("reasoning_effort", "high"),
        ("modalities", ["text", "audio"]),
        ("echo", True),
        ("suffix", "x"),
        ("best_of", 3),
        ("no_such_field", 1),
    ],
)
def test_field_that_cannot_be_honoured_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(**{field: value})
    assert caught.value.param == field and f"'{field}'" in caught.value.message


@pytest.mark.parametrize(
    ("parse", "name", "value", "suggested"),
    [
        (chat, "best_of", 1, ()),
        (chat, "prompt", "Hi", ()),
        (completion, "messages", [], ()),
        (completion, "top_logprobs", 1, ("logprobs",)),
        (chat, "response_format", {"type": "text", "json_schema": {}}, ()),
    ],
)
def test_what_was_refused_is_never_suggested(
    parse: Callable[..., CompletionCall], name: str, value: object, suggested: tuple[str, ...]
) -> None:
    with pytest.raises(UnsupportedParameter, match=name) as caught:
        parse(**{name: value})
    assert re.findall("Did you mean '(.*)'", caught.value.message) == list(suggested)


def test_near_miss_gets_a_hint() -> None:
    with pytest.raises(UnsupportedParameter, match="Did you mean 'max_tokens'"):
        chat(max_token=5)


@pytest.mark.parametrize("member", ["NaN", "Infinity", "-Infinity", "1e309", "-1e309"])
def test_number_that_json_or_a_double_does_not_have_is_refused(member: str) -> None:
    assert "JSON" in refusal(raw(f'"temperature":{member}')).message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in ("-0.1", "2.1", '"1"', "true", "[]", "{}")],
        *[("top_p", value) for value in ("-1", "0", "1.01", '"0.5"')],
        *[("max_tokens", value) for value in ("-1", "0", "9223372036854775808", '"5"', "true", "5.0", "1e400"[:3])],
        *[("max_completion_tokens", value) for value in ("0", "18446744073709551616", "[1]")],
        *[("n", value) for value in ("0", "1000000000", "65", "true", "1.5")],
        *[("seed", value) for value in ("1.5", '"x"', "9223372036854775808")],
        *[("top_k", value) for value in ("-2", "1.0")],
        *[("min_p", value) for value in ("-0.1", "1.1")],
        *[("presence_penalty", value) for value in ("-2.1", "2.1")],
        *[("repetition_penalty", value) for value in ("0", "-1", "11")],
        *[("stream", value) for value in ("1", '"true"')],
        *[("logprobs", value) for value in ("1", '"yes"')],
        *[("stop", value) for value in ('""', "5", '{"a":1}')],
        *[("stop_token_ids", value) for value in ("[-1]", "[259]", "[true]", '["a"]', "5")],
        *[("messages", value) for value in ("[]", '"hi"', "{}")],
        *[("model", value) for value in ("5", "[]")],
        *[("stream_options", value) for value in ("5", "true")],
    ],
)
def test_value_out_of_range_or_of_the_wrong_type_names_its_field(field: str, value: str) -> None:
    members = raw(f'"{field}":{value}') if field != "messages" else f'{{"messages":{value}}}'.encode()
    error = refusal(members)
    assert error.param == field and f"'{field}'" in error.message


def test_element_at_fault_is_named() -> None:
    assert refusal(raw('"stop":["a",""]')).param == "stop[1]"
    assert refusal(b'{"messages":[{"role":"user","content":"a"},5]}').param == "messages[1]"
    assert refusal(b'{"messages":[{"role":"user"}]}').param == "messages[0].content"
    assert refusal(b'{"messages":[{"content":"a"}]}').param == "messages[0].role"
    assert refusal(b'{"messages":[{"role":"user","content":[{"type":"text"}]}]}').param == "messages[0].content[0].text"
    assert refusal(b'{"messages":[{"role":"user","content":"a","x":1}]}').param == "messages[0].x"
    assert refusal(raw('"stream_options":{"x":1}')).param == "stream_options.x"


def test_part_that_is_no_text_is_refused_by_its_type() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(UnsupportedParameter, match="image_url") as caught:
        chat(messages=[{"role": "user", "content": [image]}])
    assert caught.value.param == "messages[0].content[0].type"


def test_tool_message_is_refused_by_its_role() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(messages=[*HELLO, {"role": "tool", "content": "5", "tool_call_id": "c"}])
    assert caught.value.param == "messages[1].role"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages":[',
        b"[]",
        b"5",
        b"null",
        b'"messages"',
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages":' + b'{"a":' * 100_000,
    ],
)
def test_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body).param is None


def test_ten_thousand_stops_and_messages_are_refused() -> None:
    assert refusal(orjson.dumps({"messages": HELLO, "stop": ["x"] * 10_000})).param == "stop"
    assert refusal(orjson.dumps({"messages": HELLO * 10_000})).param == "messages"


def test_two_names_of_one_limit_must_agree() -> None:
    assert chat(max_tokens=5, max_completion_tokens=5).sampling.max_tokens == 5
    with pytest.raises(InvalidRequest):
        chat(max_tokens=5, max_completion_tokens=6)


def test_top_logprobs_need_logprobs() -> None:
    assert chat(logprobs=True).sampling.logprobs == 0
    with pytest.raises(InvalidRequest):
        chat(top_logprobs=2)


@pytest.mark.parametrize("model", ["org/model", "default", "", None])
def test_served_model_answers_to_its_names(model: str | None) -> None:
    assert chat(model=model) == chat()


def test_other_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="gpt-9") as caught:
        chat(model="gpt-9")
    assert caught.value.param == "model"


def test_usage_in_the_stream_is_asked_for() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("Once", TextPrompt("Once")),
        (["Once"], TextPrompt("Once")),
        ([1, 2], TokenPrompt((1, 2))),
        ([[1, 2]], TokenPrompt((1, 2))),
    ],
)
def test_prompt_is_text_or_ids(prompt: Any, parsed: object) -> None:
    assert completion(prompt=prompt).prompt == parsed


@pytest.mark.parametrize("prompt", ["", [], [1, 259], [1, -1], [1, "a"], {"a": 1}, 5, [[]], [None]])
def test_prompt_that_is_neither_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


def test_several_prompts_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        completion(prompt=["a", "b"])
    assert caught.value.param == "prompt"


def test_best_of_is_accepted_where_it_changes_nothing() -> None:
    assert completion(n=2, best_of=2) == completion(n=2)
    with pytest.raises(UnsupportedParameter) as caught:
        completion(n=1, best_of=4)
    assert caught.value.param == "best_of"


def test_completions_take_a_number_of_logprobs() -> None:
    assert completion(logprobs=2).sampling.logprobs == 2


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_NAMES = st.sampled_from(
    ["messages", "max_tokens", "temperature", "stop", "n", "tools", "stream_options", "logprobs", "model", "prompt"]
)


@given(st.dictionaries(_NAMES | st.text(max_size=10), _JSON, max_size=6))
def test_whatever_comes_is_understood_or_refused(body: dict[str, Any]) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            parse(orjson.dumps(body), LIMITS)
        except (InvalidRequest, ModelNotFound) as error:
            assert error.message


@pytest.mark.parametrize(
    ("member", "expected"),
    [("temperature", 0.0), ("top_p", 1e-6)],
)
def test_numbers_too_small_for_float32_mean_greedy(member: str, expected: float) -> None:
    sampling = chat(**{member: 1e-50}).sampling
    assert getattr(sampling, member) == expected


def test_a_repetition_penalty_that_would_overflow_is_refused() -> None:
    assert refusal(raw('"repetition_penalty": 1e-50')).param == "repetition_penalty"


def test_a_list_of_ids_over_the_window_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        parse_completion(orjson.dumps({"prompt": [-1] * 8192}), LIMITS)
    assert (caught.value.prompt_tokens, caught.value.context_window, caught.value.param) == (8192, 8192, "prompt")
