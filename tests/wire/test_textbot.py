"""Query parameters and bodies of the plain-text route."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.errors import InvalidRequest, UnsupportedParameter
from causerie.types import ChatPrompt, Message, TextPrompt
from causerie.wire.sampling import Limits
from causerie.wire.textbot import TextCall, parse_textbot

LIMITS = Limits(model="m", default_max_tokens=1024, max_choices=64, vocab_size=259, context_window=8192)


def parse(query: str = "", body: bytes = b"", content_type: str | None = None) -> TextCall:
    return parse_textbot(query.encode(), content_type, body, LIMITS)


def test_prompt_is_one_user_turn() -> None:
    assert parse("prompt=Hi%20there").prompt == ChatPrompt((Message("user", "Hi there"),), field="prompt")
    assert parse(body="Grüße".encode()).prompt == ChatPrompt((Message("user", "Grüße"),), field="prompt")


def test_raw_prompt_is_continued_bare() -> None:
    assert parse("raw=true&prompt=Once").prompt == TextPrompt("Once")


def test_sampling_is_read_from_the_query() -> None:
    call = parse("prompt=a&max_tokens=5&temperature=0.5&top_k=3&seed=7&stop=x&stop=y&ignore_eos=true&stop_token_ids=4")
    assert (call.sampling.max_tokens, call.sampling.temperature, call.sampling.top_k) == (5, 0.5, 3)
    assert call.sampling.seed == 7 and call.sampling.ignore_eos and call.stop == ("x", "y")
    assert call.sampling.stop_token_ids == {4}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("prompt=a&max_tokens=-1", "max_tokens"),
        ("prompt=a&max_tokens=0", "max_tokens"),
        ("prompt=a&max_tokens=5.0", "max_tokens"),
        ("prompt=a&max_tokens=1_000", "max_tokens"),
        ("prompt=a&max_tokens=9223372036854775808", "max_tokens"),
        ("prompt=a&max_tokens=" + "9" * 5000, "max_tokens"),
        ("prompt=a&max_tokens=", "max_tokens"),
        ("prompt=a&max_tokens=5&max_tokens=6", "max_tokens"),
        ("prompt=a&temperature=NaN", "temperature"),
        ("prompt=a&temperature=inf", "temperature"),
        ("prompt=a&temperature=1e309", "temperature"),
        ("prompt=a&temperature=%D9%A1", "temperature"),
        ("prompt=a&top_p=-1", "top_p"),
        ("prompt=a&stop=", "stop"),
        ("prompt=a&stop_token_ids=x", "stop_token_ids"),
        ("prompt=a&raw=maybe", "raw"),
        ("prompt=a&n=2", "n"),
        ("prompt=a&stream=true", "stream"),
        ("prompt=", "prompt"),
        ("", "prompt"),
        ("prompt=a&prompt=b", "prompt"),
    ],
)
def test_bad_parameter_is_refused_by_name(query: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(query)
    assert caught.value.param == param


def test_unknown_parameter_gets_a_hint() -> None:
    with pytest.raises(UnsupportedParameter, match="Did you mean 'temperature'"):
        parse("prompt=a&temprature=1")


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "text/plain; charset=UTF-8", "Text/Plain;charset=utf8"]
)
def test_text_body_is_the_prompt(content_type: str | None) -> None:
    assert parse(body=b"Hi", content_type=content_type).prompt == ChatPrompt((Message("user", "Hi"),), field="prompt")


@pytest.mark.parametrize(
    "content_type", ["application/json", "multipart/form-data; boundary=x", "text/plain; charset=latin1"]
)
def test_body_of_another_type_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(body=b"{}", content_type=content_type)
    assert caught.value.param == "Content-Type"


def test_prompt_in_two_places_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        parse("prompt=a", b"b")


@pytest.mark.parametrize(("query", "body"), [("prompt=%FF", b""), ("", b"\xff\xfe"), ("prompt=%ED%A0%80", b"")])
def test_invalid_utf8_is_refused(query: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(query, body)


def test_too_many_parameters_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        parse("&".join(["a=1"] * 10_000))


@given(st.text(min_size=1))
def test_any_text_survives_both_ways_in(text: str) -> None:
    expected = ChatPrompt((Message("user", text),), field="prompt")
    assert parse("prompt=" + quote(text)).prompt == expected
    assert parse(body=text.encode()).prompt == expected
