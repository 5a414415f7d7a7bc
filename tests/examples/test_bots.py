"""The tutorial's three bots on a real Ray Serve, started as the tutorial says, with the real clients.

The model is a small GPT-2 on a hub of this machine, under DialoGPT's name; marked tests have the default model.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from causerie.models.resolve import resolve
from tests.examples.client import EXAMPLES, Client
from tests.support.hub import LocalHub
from tests.support.ray_cluster import Bot, RayCluster, serve_run, until
from tests.support.tiny_models import SPECIAL, write_tiny_gpt2

FINISHED = "<<Response Finished>>"
STOPPED = "The model has stopped."
BOTS = ("textbot", "chatbot", "batchbot")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables with which DialoGPT is a small GPT-2."""
    hub = LocalHub()
    folder = tmp_path_factory.mktemp("dialogpt")
    model = write_tiny_gpt2(folder, context=512)
    model.config.tie_word_embeddings = False
    model.lm_head = torch.nn.Linear(model.config.n_embd, model.config.vocab_size, bias=False)
    with torch.no_grad():
        # Never the most likely: so every answer goes on to its limit.
        model.lm_head.weight[: len(SPECIAL)] = 0
    model.save_pretrained(folder)
    hub.add("microsoft/DialoGPT-small", folder)
    yield hub.environment(tmp_path_factory.mktemp("cache"))
    hub.close()


@pytest.fixture(scope="module")
def default_model() -> None:
    """It is fetched and converted before a bot asks for it."""
    resolve("default", form="f16", engine="transformers")


@contextmanager
def running(cluster: RayCluster, *arguments: str, variables: dict[str, str] | None = None) -> Iterator[Bot]:
    """The bot, ready; afterwards, nothing that it was put through may have left a traceback."""
    with serve_run(cluster, *arguments, variables=variables) as bot:
        bot.ready()
        yield bot
        assert "Traceback" not in bot.log, bot.log[bot.log.index("Traceback") - 2000 :][:6000]
        # Ray now and then forgets to ask after a request that it has cancelled itself.
        unheard = re.findall(r"never retrieved\n(.*)", bot.errors)
        assert [future for future in unheard if "CancelledError" not in future] == []


def tokens(bot: Bot) -> list[str]:
    """What the log has of the model's answers, token by token."""
    return [ast.literal_eval(said) for said in re.findall(r"-- Token: (.*)$", bot.log, re.MULTILINE)]


def batches(bot: Bot) -> list[list[str | None]]:
    return [ast.literal_eval(said) for said in re.findall(r"-- Tokens: (.*)$", bot.log, re.MULTILINE)]


def assert_came_bit_by_bit(client: Client) -> None:
    assert len(client.pieces) > 5
    assert client.last - client.first > 0.2


def two_at_once(name: str, *arguments: str) -> list[Client]:
    """Two that have ended, and whose answers were written at the same time.

    An answer takes a third of a second, and on a busy machine one may have ended before the other is asked for.
    """
    for _ in range(5):
        pair = Client.two(name, *arguments)
        for client in pair:
            client.end()
        if max(client.first for client in pair) < min(client.last for client in pair):
            return pair
    raise AssertionError("one after the other")


def test_textbot(cluster: RayCluster, hub: dict[str, str]) -> None:
    prompt = "the quick <|endoftext|> brown 'fox'"
    with running(cluster, "textbot:app", variables=hub) as bot:
        alone = Client("stream_client.py", bot.url, prompt)
        text = alone.end()
        assert_came_bit_by_bit(alone)
        assert f"-- Prompt: {prompt!r}" in bot.log
        assert "".join(tokens(bot)) == text.removesuffix("\n")

        assert [client.text for client in two_at_once("stream_client.py", bot.url, prompt)] == [text, text]

        refused = requests.post(f"{bot.url}/?prompt={'fox ' * 600}", timeout=30)
        assert refused.status_code == 400 and "context window is 512" in refused.text
        assert requests.post(bot.url, timeout=30).status_code == 422


def test_chatbot(cluster: RayCluster, hub: dict[str, str]) -> None:
    with running(cluster, "chatbot:app", variables=hub) as bot:
        pair = two_at_once("ws_client.py", bot.socket_url)
        texts = [client.text for client in pair]
        assert texts[0] == texts[1] and FINISHED not in texts[0]
        assert re.findall(r"^you: (.*)$", texts[0], re.MULTILINE) == ["What is the capital of France?", "And of Italy?"]
        left = bot.log.count("-- Prompt: 'And of Italy?'")
        assert left in range(2, 11, 2)
        for client in pair:
            assert_came_bit_by_bit(client)
        until(lambda: bot.log.count("The client has left.") == left, 10)

        with connect(bot.socket_url) as chat:
            # Each answer is 200 tokens, the window 512: the chat goes on when its beginning no longer fits.
            for _ in range(4):
                chat.send("the quick brown fox")
                while chat.recv(timeout=30) != FINISHED:
                    pass
            chat.send("fox " * 600)
            with pytest.raises(ConnectionClosedError) as closed:
                chat.recv(timeout=30)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert "context window is 512" in closed.value.rcvd.reason


def test_batchbot(cluster: RayCluster, hub: dict[str, str]) -> None:
    prompts = ["the quick brown fox", "and the dog sleeps while everybody talks of it"]
    with running(cluster, "batchbot:app", variables=hub) as bot:
        alone = [Client("stream_client.py", bot.url, prompt).end() for prompt in prompts]
        before = len(batches(bot))
        assert all(len(step) == 1 for step in batches(bot))

        pair = [Client("stream_client.py", bot.url, prompt) for prompt in prompts]
        # Padding changes nothing: each says what it says alone.
        assert [client.end() for client in pair] == alone
        assert all(len(step) == 2 for step in batches(bot)[before:])
        assert max(client.first for client in pair) < min(client.last for client in pair)
        for client, prompt in zip(pair, prompts, strict=True):
            assert_came_bit_by_bit(client)
            assert f"-- Prompt: {prompt!r}" in bot.log
        said = {"".join(filter(None, row)) for row in zip(*batches(bot)[before:], strict=True)}
        assert said == {text.removesuffix("\n") for text in alone}

        refused = requests.post(f"{bot.url}/?prompt={'fox ' * 600}", timeout=30)
        assert refused.status_code == 400 and "context window is 512" in refused.text


@pytest.mark.model
def test_textbot_stops_when_its_client_leaves(cluster: RayCluster, default_model: None) -> None:
    with running(cluster, "textbot:build", "model=default") as bot:
        client = Client("stream_client.py", bot.url, "What is the capital of France?")
        assert "Paris" in client.end()
        assert_came_bit_by_bit(client)
        with requests.post(f"{bot.url}/?prompt=Tell me a long story.", stream=True, timeout=30) as response:
            next(response.iter_content(chunk_size=None))
        assert_stops(bot, 2)


@pytest.mark.model
def test_chatbot_ends_the_call_when_its_client_leaves(cluster: RayCluster, default_model: None) -> None:
    with running(cluster, "chatbot:build", "model=default") as bot:
        text = Client("ws_client.py", bot.socket_url).end()
        assert "Paris" in text and "Rome" in text
        with connect(bot.socket_url):
            pass
        until(lambda: bot.log.count("The client has left.") == 2, 10)
        with connect(bot.socket_url) as chat:
            chat.send("Tell me a long story.")
            chat.recv(timeout=30)
        until(lambda: bot.log.count("The client has left.") == 3, 10)
        assert_stops(bot, 3)


@pytest.mark.model
def test_batchbot_ends_a_short_answer_before_a_long_one(cluster: RayCluster, default_model: None) -> None:
    with running(cluster, "batchbot:build", "model=default") as bot:
        long = Client("stream_client.py", bot.url, "Tell me a long story.")
        short = Client("stream_client.py", bot.url, "What is the capital of France?")
        assert "Paris" in short.end()
        assert len(long.end()) > 200
        assert all(len(step) == 2 for step in batches(bot))
        assert long.first < short.last
        assert short.last < long.last - 1

        # One that leaves its batch takes nothing from the other; when both have, the model stops.
        steps = len(batches(bot))
        first, second = (
            requests.post(f"{bot.url}/?prompt=Tell me a long story.", stream=True, timeout=30) for _ in range(2)
        )
        answers = first.iter_content(chunk_size=None), second.iter_content(chunk_size=None)
        next(answers[0])
        first.close()
        until(lambda: batches(bot)[-1].count(None) == 1, 5)
        assert next(answers[1])
        second.close()
        assert_stops(bot, 2 + (len(batches(bot)[steps]) == 1))


def assert_stops(bot: Bot, times: int) -> None:
    """The model stops for the ``times``-th time, long before its answer of 200 tokens would have been whole."""
    left = time.monotonic()
    until(lambda: bot.log.count(STOPPED) == times, 10)
    assert time.monotonic() - left < 2


@pytest.mark.parametrize("name", BOTS)
def test_without_a_hub_one_line_says_what_to_do(cluster: RayCluster, name: str, tmp_path: Path) -> None:
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
    with running(cluster, f"{name}:app", variables=variables) as bot:
        assert "Traceback" not in bot.terminal
        [line] = [line for line in bot.terminal.splitlines() if "No model" in line]
        assert f"serve run {name}:build model=default" in line
        assert "microsoft/DialoGPT-small is not in the local cache, and the hub cannot be reached" in line
        if name == "chatbot":
            with connect(bot.socket_url) as chat:
                chat.send("Hi")
                with pytest.raises(ConnectionClosedError, match="build model=default"):
                    chat.recv(timeout=30)
        else:
            answer = requests.post(f"{bot.url}/?prompt=Hi", timeout=30)
            assert answer.status_code == 503 and "build model=default" in answer.text
            assert answer.text.count("\n") == 1


@pytest.mark.parametrize("name", BOTS)
def test_a_bot_is_a_bound_application_in_the_end(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    assert source.endswith(f'app = {name.title()}.bind("microsoft/DialoGPT-small")\n')
    assert len(source.splitlines()) < 110
    assert "sleep" not in source


def test_ray_leaves_no_process_and_no_folder() -> None:
    cluster = RayCluster()
    processes = cluster.processes()
    cluster.close()
    assert len(processes) > 3
    assert cluster.processes() == [] and not cluster.folder.exists()
