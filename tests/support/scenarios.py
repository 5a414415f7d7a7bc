"""What every server of ours does on a real model, embedded or on Ray Serve: one table, run against each."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
import requests
from openai import BadRequestError, NotFoundError, OpenAI
from websockets.sync.client import connect

FINISHED = "<<Response Finished>>"
Scenario = Callable[[str], None]


def openai(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def running(url: str) -> float:
    """Requests that hold a place, over all replicas."""
    page = requests.get(f"{url}/metrics", timeout=20).text
    names = ("num_requests_running", "num_requests_waiting", "engine_sequences_running")
    return sum(float(value) for value in re.findall(rf"^causerie:(?:{'|'.join(names)}).*? (\S+)$", page, re.MULTILINE))


def until_nothing_runs(url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while running(url):
        assert time.monotonic() < end, f"something still runs after {seconds} s"
        time.sleep(0.05)


def text_is_streamed(url: str) -> None:
    with requests.post(f"{url}/?max_tokens=40&ignore_eos=true", data="Tell me a story.", stream=True, timeout=60) as it:
        assert it.status_code == 200
        assert it.headers["content-type"] == "text/plain; charset=utf-8"
        times = [(time.monotonic(), piece) for piece in it.iter_content(None, decode_unicode=True)]
    assert len(times) > 5
    assert times[-1][0] - times[0][0] > 0.1


def text_takes_a_query(url: str) -> None:
    answers = {requests.post(f"{url}/?prompt=Hi&temperature=0&max_tokens=8", timeout=60).text for _ in range(2)}
    assert len(answers) == 1
    assert answers.pop()


def converse(url: str, *turns: str) -> list[str]:
    """The answers of one greedy conversation."""
    answers = []
    with connect(url.replace("http", "ws", 1) + "/?temperature=0&max_tokens=30") as chat:
        for turn in turns:
            chat.send(turn)
            frames = []
            while (frame := chat.recv(60)) != FINISHED:
                frames.append(str(frame))
            assert len(frames) > 1
            answers.append("".join(frames))
    return answers


def chat_remembers(url: str) -> None:
    (alone,) = converse(url, "What is it called?")
    _, told = converse(url, "My dog is called Ada.", "What is it called?")
    assert told != alone


def openai_streams_with_usage(url: str) -> None:
    stream = openai(url).chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Count to ten."}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=20,
        temperature=0,
    )
    chunks = list(stream)
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    whole = openai(url).chat.completions.create(
        model="default", messages=[{"role": "user", "content": "Count to ten."}], max_tokens=20, temperature=0
    )
    assert len(said) > 3
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.choices[0].finish_reason in ("stop", "length")


def completions_take_n_stop_and_logprobs(url: str) -> None:
    answer = openai(url).completions.create(
        model="default", prompt="one, two, three,", n=2, max_tokens=16, temperature=0, logprobs=0, stop=["seven"]
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert "seven" not in choice.text
        assert choice.logprobs is not None and choice.logprobs.token_logprobs


def a_long_prompt_is_answered(url: str) -> None:
    answer = openai(url).completions.create(model="default", prompt="word " * 1500, max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens >= 1500
    assert answer.usage.completion_tokens


def what_is_wrong_is_said(url: str) -> None:
    client = openai(url)
    assert [model.id for model in client.models.list()] != []
    with pytest.raises(NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(BadRequestError, match="temperature"):
        client.completions.create(model="default", prompt="Hi", temperature=9)
    with pytest.raises(BadRequestError, match="8192"):
        client.completions.create(model="default", prompt="word " * 9000)
    assert requests.post(f"{url}/v1/chat/completions", data=b"{", timeout=20).json()["error"]["type"]


def it_says_how_it_is(url: str) -> None:
    for path in ("/health", "/ready", "/metrics", "/"):
        assert requests.get(url + path, timeout=20).status_code == 200


def a_client_that_leaves_frees_its_place(url: str) -> None:
    until_nothing_runs(url, 10)
    parts = urlsplit(url)
    for path, body in (
        ("/?max_tokens=4000&ignore_eos=true", b"Tell me a story."),
        ("/v1/completions", b'{"prompt": "Once", "max_tokens": 4000, "ignore_eos": true, "stream": true}'),
        ("/v1/completions", b'{"prompt": "Once", "max_tokens": 4000, "ignore_eos": true}'),
    ):
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            if b"stream" in body or path.startswith("/?"):
                assert client.recv(4096)
            else:
                time.sleep(0.5)
            assert running(url)
        until_nothing_runs(url, 3)


def responses_are_kept(url: str) -> None:
    client = openai(url)
    first = client.responses.create(model="default", input="Name a colour.", max_output_tokens=8, temperature=0)
    events = list(
        client.responses.create(
            model="default", input="Another?", previous_response_id=first.id, max_output_tokens=8, stream=True
        )
    )
    numbers = [event.sequence_number for event in events]
    assert numbers[0] == 0
    assert all(before < after for before, after in pairwise(numbers))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert client.responses.retrieve(last.response.id).output_text == said
    assert "Another?" in str(client.responses.input_items.list(last.response.id).data)
    for response in (first, last.response):
        client.responses.delete(response.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(first.id)


def typed_text_is_read_ahead(url: str) -> None:
    with connect(url.replace("http", "ws", 1) + "/v1/responses", max_size=None) as socket:

        def say(what: str, **fields: object) -> None:
            socket.send(json.dumps({"type": f"input_text_buffer.{what}", **fields}))

        text = f"{time.monotonic_ns()}: " + "The sea was calm that day and nobody spoke. " * 40
        say("append", text=text, response={"max_output_tokens": 4, "store": False})
        prefilled = {"tokens": 0, "cached_tokens": 0}
        while prefilled["cached_tokens"] < 300:
            prefilled = json.loads(socket.recv(20))
            assert prefilled["type"] == "input_text_buffer.prefilled"
        say("append", text="What happened?")
        say("commit")
        event = json.loads(socket.recv(20))
        while event["type"] not in ("response.completed", "response.incomplete"):
            event = json.loads(socket.recv(20))
            assert event["type"] not in ("error", "response.failed")
        usage = event["response"]["usage"]
        assert usage["input_tokens_details"]["cached_tokens"] >= 300


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        text_is_streamed,
        text_takes_a_query,
        chat_remembers,
        openai_streams_with_usage,
        completions_take_n_stop_and_logprobs,
        a_long_prompt_is_answered,
        what_is_wrong_is_said,
        it_says_how_it_is,
        a_client_that_leaves_frees_its_place,
        responses_are_kept,
        typed_text_is_read_ahead,
    )
}
