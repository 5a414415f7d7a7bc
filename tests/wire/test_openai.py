"""Chunks and whole completions, byte for byte what clients of the API read."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causerie.errors import InvalidRequest
from causerie.types import Finished, FinishReason, Part, TextDelta, TokenLogprob, Usage
from causerie.wire import sse
from causerie.wire.openai import Chunks, Heading, Kind, Whole, error_object, usage_object


class Names:
    def token_text(self, id: int) -> str:  # noqa: A002
        return f"<{id}>"

    def token_bytes(self, id: int) -> bytes:  # noqa: A002
        return bytes([id])


def heading(kind: Kind = "chat", n: int = 1, *, logprobs: bool = False) -> Heading:
    return Heading(kind, "r1", 1_700_000_000, "mödel\u2028", n, Names() if logprobs else None)


def events(body: bytes) -> list[Any]:
    assert body.endswith(b"\n\n")
    lines = [block for block in body.decode().split("\n\n") if block]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line[6:] == "[DONE]" else orjson.loads(line[6:]) for line in lines]


def part(text: str, index: int = 0, finish: FinishReason | None = None) -> Part:
    return Part(index, text, 1, (), finish)


def test_chat_stream_has_the_apis_shape() -> None:
    chunks = Chunks(heading(), include_usage=False)
    first = events(chunks.delta(TextDelta((part("Hel"),))))
    second = events(chunks.delta(TextDelta((part("lo", finish=FinishReason.STOP),))))
    last = events(chunks.finished(Finished((FinishReason.STOP,), Usage(3, 2))))
    common = {"id": "chatcmpl-r1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "mödel\u2028"}
    rest = {"logprobs": None}
    assert first == [
        common
        | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None} | rest]},
        common | {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None} | rest]},
    ]
    assert second == [
        common | {"choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": None} | rest]},
        common | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"} | rest]},
    ]
    assert last == ["[DONE]"]


def test_usage_comes_in_a_chunk_of_its_own() -> None:
    chunks = Chunks(heading(), include_usage=True)
    said = events(chunks.delta(TextDelta((part("a", finish=FinishReason.LENGTH),))))
    assert [chunk["usage"] for chunk in said] == [None, None, None]
    usage, done = events(chunks.finished(Finished((FinishReason.LENGTH,), Usage(3, 2, 1))))
    assert usage["choices"] == [] and done == "[DONE]"
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_cached_tokens_are_left_out_where_unknown() -> None:
    assert "prompt_tokens_details" not in usage_object(Usage(1, 1))


def test_choices_of_a_stream_are_told_apart_by_index() -> None:
    chunks = Chunks(heading(n=2), include_usage=False)
    said = events(chunks.delta(TextDelta((part("a", 0), part("b", 1)))))
    assert [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"].get("content")) for chunk in said] == [
        (0, ""),
        (0, "a"),
        (1, ""),
        (1, "b"),
    ]


def test_empty_delta_says_nothing_after_the_role() -> None:
    chunks = Chunks(heading(), include_usage=False)
    assert chunks.delta(TextDelta((part("a"),)))
    assert chunks.delta(TextDelta((part(""),))) == b""


def test_cancelled_choice_gets_no_finish_reason() -> None:
    chunks = Chunks(heading(), include_usage=False)
    said = events(chunks.delta(TextDelta((part("a", finish=FinishReason.CANCELLED),))))
    assert [chunk["choices"][0]["finish_reason"] for chunk in said] == [None, None]


def test_failed_stream_has_an_error_and_no_done() -> None:
    body = Chunks(heading(), include_usage=True).failed(error_object(InvalidRequest("No.", param="x"), "t"))
    assert events(body) == [{"error": {"message": "No.", "type": "t", "param": "x", "code": "invalid_value"}}]


def test_text_stream_has_the_apis_shape() -> None:
    chunks = Chunks(heading("text"), include_usage=False)
    first, last = events(chunks.delta(TextDelta((part("x", finish=FinishReason.STOP),))))
    assert first["object"] == "text_completion" and first["id"] == "cmpl-r1"
    assert first["choices"] == [{"index": 0, "text": "x", "logprobs": None, "finish_reason": None}]
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


def test_logprobs_of_a_chat_chunk() -> None:
    chunks = Chunks(heading(logprobs=True), include_usage=False)
    delta = TextDelta((Part(0, "a", 1, (TokenLogprob(7, -0.5, ((7, -0.5), (8, float("-inf")))),)),))
    chunk = events(chunks.delta(delta))[-1]
    seven = {"token": "<7>", "logprob": -0.5, "bytes": [7]}
    eight = {"token": "<8>", "logprob": -9999.0, "bytes": [8]}
    assert chunk["choices"][0]["logprobs"] == {"content": [seven | {"top_logprobs": [seven, eight]}], "refusal": None}
    assert chunk["choices"][0]["delta"] == {"content": "a"}


def test_logprobs_of_a_text_chunk_count_offsets_on() -> None:
    chunks = Chunks(heading("text", logprobs=True), include_usage=False)
    delta = TextDelta((Part(0, "a", 1, (TokenLogprob(7, -0.5, ((8, -1.0),)),)),))
    offsets = [events(chunks.delta(delta))[0]["choices"][0]["logprobs"]["text_offset"] for _ in range(2)]
    assert offsets == [[0], [3]]


def test_whole_completion_joins_the_deltas() -> None:
    whole = Whole(heading(n=2))
    whole.delta(TextDelta((part("He", 0), part("X", 1))))
    whole.delta(TextDelta((part("llo", 0, FinishReason.STOP),)))
    body = orjson.loads(whole.finished(Finished((FinishReason.STOP, FinishReason.LENGTH), Usage(3, 4))))
    assert body["object"] == "chat.completion" and body["usage"]["total_tokens"] == 7
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "Hello", "stop"),
        (1, "X", "length"),
    ]


@given(st.lists(st.text(), max_size=8))
def test_framing_holds_whatever_the_model_says(texts: list[str]) -> None:
    texts = [*texts, "[DONE]", "\n\ndata: {}\n\n", "\u2028\u2029\x85\x0b\x0c\x1c", "a\r\nb"]
    chunks = Chunks(heading(), include_usage=False)
    body = b"".join(chunks.delta(TextDelta((part(text),))) for text in texts)
    # Clients that split lines the way str.splitlines does see the same lines as the rest.
    lines = [line for line in body.decode().splitlines() if line]
    assert lines == [line for line in body.decode().split("\n") if line]
    contents = [orjson.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines]
    assert "".join(contents) == "".join(texts)


@pytest.mark.parametrize("text", ["\u2028", "plain", "\x85é", '"\\'])
def test_json_text_reads_back(text: str) -> None:
    assert orjson.loads(sse.json_text(text)) == text
