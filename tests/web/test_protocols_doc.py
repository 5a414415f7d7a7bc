"""``docs/protocols.md`` says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from causerie.chat.metrics import Metrics
from causerie.errors import CauserieError, InvalidRequest, _tree
from causerie.types import FinishReason
from causerie.web import framed_chat
from causerie.web.errors import MEANINGS
from causerie.wire import (
    completions,
    conversations,
    kept_answers,
    options,
    queries,
    response_socket,
    responses_request,
    sampling,
    socket_events,
)
from causerie.wire.chat_socket import MAX_PENDING_TURNS, SENTINEL

DOC = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
ROWS = {
    code: (int(status), close.strip())
    for codes, status, close in re.findall(r"^\| (`[^|]+) \| (\d+) \|([^|]*)\|$", DOC, re.MULTILINE)
    for code in re.findall(r"`(\w+)`", codes)
}


@pytest.mark.parametrize("error", dict.fromkeys((*MEANINGS, *_tree(InvalidRequest))), ids=lambda error: error.code)
def test_every_error_is_in_the_table(error: type[CauserieError]) -> None:
    meaning = next(MEANINGS[class_] for class_ in error.__mro__ if class_ in MEANINGS)
    status, close = ROWS[error.code]
    assert status == meaning.status
    assert close in ("", str(meaning.close_code))


def test_every_metric_is_named() -> None:
    metrics = Metrics()
    metrics.watch(running=lambda: 0, waiting=lambda: 0, kv_usage=lambda: 0)
    metrics.rejected("overloaded")
    metrics.failed("engine_error")
    metrics.cache_missed("evicted")
    metrics.finished(FinishReason.STOP, 1, 1, 1.0)
    exposed = set(re.findall(r"^# HELP (\S+)", metrics.render().decode(), re.MULTILINE))
    named = {name.partition("{")[0] for name in re.findall(r"`(causerie:[^`]+)`", DOC)} - {"causerie:"}
    assert named == {name for name in exposed if not name.endswith("_created")}


def test_limits_are_the_ones_in_force() -> None:
    words = " ".join(DOC.split())
    assert (
        f"{response_socket.MAX_LANES} named lanes on a socket, {response_socket.MAX_WAITING} responses that wait, "
        f"{response_socket.MAX_STEERS} inputs that steer one response, {kept_answers.MAX_ANSWERS} unstored responses "
        f"or {kept_answers.MAX_CHARACTERS:,} characters to be continued" in words
    )
    assert f"goes on for {framed_chat.GRACE:g} seconds" in words and f"`{framed_chat.FRAMED}`" in words
    assert all(f"`{type_}" in DOC for type_ in socket_events._PARSERS)
    assert f"`{SENTINEL}`" in words and f"wait, up to {MAX_PENDING_TURNS}." in words
    assert (
        f"{completions.MAX_MESSAGES:,} messages, {sampling.MAX_CHOICES} choices (and no more than run at once), "
        f"{sampling.MAX_STOPS} stop strings of {sampling.MAX_STOP_LENGTH:,} characters, "
        f"{sampling.MAX_STOP_TOKEN_IDS:,} stop token ids, {sampling.MAX_LOGPROBS} `top_logprobs`" in words
    )
    assert all(f"`{name}`" in words for name in sampling.SAMPLING_NAMES)
    assert (
        f"{responses_request.MAX_ITEMS:,} input items, {options.MAX_METADATA} `metadata` pairs of "
        f"{options.MAX_METADATA_KEY} and {options.MAX_METADATA_VALUE} characters, {conversations.MAX_ADDED} items "
        f"added to a conversation at a time, {queries.MAX_PAGE} items a page" in words
    )


@pytest.mark.parametrize("name", ResponseCreateParamsBase.__annotations__)
def test_every_parameter_of_a_response_that_means_something_is_named(name: str) -> None:
    refused = {"access_programs", "background_options", "context_management", "image", "prompt_cache_options"}
    assert f"`{name}`" in DOC or f"`{name}: " in DOC or name in refused
