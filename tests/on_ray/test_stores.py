"""Two ingresses that share a Redis, on scripted engines: what one of them began is everybody's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.on_ray.product import deploy, kill, replicas
from tests.support.raw import Connection
from tests.support.ray_cluster import Bot, RayCluster, serve_run, until
from tests.support.redis_server import redis_server
from tests.support.scenarios import until_nothing_runs
from tests.support.served import chat_body
from tests.support.stored import Stream, Streaming, ask, made, read_again, said
from tests.web.test_resume import events, text_of

pytestmark = pytest.mark.slow

SOME, LONG = "la " * 200, "la " * 1200
"""The scripted engine says a turn back: these for 5 and for 28 seconds."""
MOST = 4000
TRIES = 10
"""Of two ingresses Ray mostly, but not always, takes the one that is less busy."""
LEASE = 5.0


@pytest.fixture(scope="module")
def arguments() -> Iterator[tuple[str, ...]]:
    with redis_server() as url:
        yield "engine=scripted", "ingresses=2", f"store={url}", "shutdown_deadline=1"


@pytest.fixture(scope="module")
def product(cluster: RayCluster, arguments: tuple[str, ...]) -> Iterator[Bot]:
    with serve_run(cluster, "causerie.ray:build", *arguments) as product:
        product.ready()
        yield product


@pytest.fixture
def server(product: Bot) -> Iterator[Bot]:
    """Both ingresses are there and idle, before and after."""
    until(lambda: len(replicas(product.url, "num_requests_running")) == 2, 60)
    until_nothing_runs(product.url, 10)
    yield product


class Asked:
    """A request by its id, which Ray's log of a replica has in a line at the request's end."""

    def __init__(self, cluster: RayCluster) -> None:
        self._logs = cluster.logs / "serve"
        self._id = uuid.uuid4().hex
        self.headers = {"X-Request-Id": self._id}

    @property
    def ingress(self) -> str:
        """The one that answered."""
        until(self._found, 10)
        return self._found()[0]

    def _found(self) -> list[str]:
        logs = self._logs.glob("replica_default_Ingress_*.log")
        return [log.stem.rpartition("_")[2] for log in logs if f" {self._id} -- " in log.read_text()]


def generating(server: Bot) -> str:
    """The one ingress in which something runs."""
    (found,) = [ingress for ingress, count in replicas(server.url, "num_requests_running").items() if count]
    return found


def check_order(*streams: Stream) -> None:
    """Nothing comes twice: one that lags gets several deltas as one, under the last one's number."""
    numbers = [event["sequence_number"] for stream in streams for event in stream.events]
    assert all(earlier < later for earlier, later in pairwise(numbers)), numbers


def test_a_stream_is_read_through_one_ingress_while_another_generates_it(server: Bot, cluster: RayCluster) -> None:
    def other() -> bool:
        first = Streaming(server, input=SOME, max_output_tokens=MOST, background=True)
        begun = first.begun()
        seen = Stream(list(begun.events))
        asked = Asked(cluster)
        rest = Streaming(server, asked.headers, again=begun.id, after=seen.events[-1]["sequence_number"])
        rest.begun()
        ingress = generating(server)
        resumed, whole = rest.finish(), first.finish()
        check_order(seen, resumed)
        check_order(whole)
        assert seen.text + resumed.text == whole.text == said(whole.end)
        assert resumed.events[-1] == whole.events[-1]
        assert whole.text.startswith(f"You said: {SOME.strip()}.")
        return asked.ingress != ingress

    assert any(other() for _ in range(TRIES))


def rest_of(connection: Connection) -> bytes:
    pieces = []
    while piece := connection.chunk():
        pieces.append(piece)
    return b"".join(pieces)


def test_a_stream_that_is_not_stored_is_read_through_another_ingress_too(server: Bot, cluster: RayCluster) -> None:
    def other() -> bool:
        id_ = uuid.uuid4().hex
        path, body = "/v1/chat/completions", chat_body(SOME, stream=True, on_disconnect="continue", max_tokens=MOST)
        with Connection(server.address, timeout=60) as first, Connection(server.address, timeout=60) as again:
            first.request("POST", path, body, {"X-Request-Id": id_}).head()
            had = b""
            while not text_of(had):
                had += first.chunk()
            asked = Asked(cluster)
            headers = {**asked.headers, "Last-Event-ID": str(events(had)[-1][0])}
            assert again.request("GET", f"{path}/{id_}?stream=true", None, headers).head()[0] == 200
            begun = again.chunk()
            ingress = generating(server)
            rest, whole = begun + rest_of(again), had + rest_of(first)
        assert text_of(had) + text_of(rest) == text_of(whole) and text_of(whole).startswith(
            f"You said: {SOME.strip()}."
        )
        assert events(rest)[-2:] == events(whole)[-2:]
        return asked.ingress != ingress

    assert any(other() for _ in range(TRIES))


def test_the_other_ingress_has_all_that_one_said_before_it_was_killed_and_then_one_end(
    server: Bot, cluster: RayCluster
) -> None:
    conversation = made(server, "/v1/conversations")["id"]
    fields = {"conversation": conversation, "max_output_tokens": MOST, "on_disconnect": "continue"}
    cut = Streaming(server, input=LONG, **fields)
    begun = cut.begun()
    asked = Asked(cluster)
    followed = Streaming(server, asked.headers, again=begun.id)
    followed.begun()
    ingress = generating(server)
    kill(cluster, "Ingress", ingress)
    killed = time.monotonic()
    seen, kept = cut.finish(), followed.finish()
    assert time.monotonic() - killed < 3 * LEASE
    assert asked.ingress != ingress
    assert not seen.whole and not seen.ended
    check_order(kept)
    assert kept.whole and kept.text.startswith(seen.text)
    assert kept.events[-1]["type"] == "response.failed"
    assert kept.end["error"]["type"] == "interrupted", kept.end["error"]
    assert said(kept.end) == kept.text
    assert read_again(server, begun.id).events == kept.events
    next_turn = made(server, "/v1/responses", input="And now?", conversation=conversation)
    assert said(next_turn).startswith("You said: And now?.")


def test_a_response_is_cancelled_through_another_ingress(server: Bot, cluster: RayCluster) -> None:
    def other() -> bool:
        running = Streaming(server, input=LONG, max_output_tokens=MOST, background=True)
        begun = running.begun()
        ingress = generating(server)
        asked = Asked(cluster)
        answer = ask(server, "POST", f"/v1/responses/{begun.id}/cancel", headers=asked.headers)
        assert (answer.status, answer.json()["status"]) == (200, "cancelled"), answer
        until_nothing_runs(server.url, 5)
        assert running.finish().whole
        assert ask(server, "GET", f"/v1/responses/{begun.id}").json()["status"] == "cancelled"
        return asked.ingress != ingress

    assert any(other() for _ in range(TRIES))


def test_a_conversation_goes_on_in_another_ingress(server: Bot, cluster: RayCluster) -> None:
    conversation = made(server, "/v1/conversations")["id"]
    ingresses: set[str] = set()
    turns: list[dict[str, Any]] = []
    while len(ingresses) < 2 and len(turns) < 20:  # Ray takes one of two idle ones at random.
        asked = Asked(cluster)
        body = {"input": f"Turn {len(turns)}", "conversation": conversation}
        answer = ask(server, "POST", "/v1/responses", body, asked.headers)
        assert answer.status == 200, answer
        turns.append(answer.json())
        ingresses.add(asked.ingress)
    assert len(ingresses) == 2
    read = [turn["usage"]["input_tokens"] for turn in turns]
    assert all(later > earlier + len(said(turns[0])) for earlier, later in pairwise(read))
    items = ask(server, "GET", f"/v1/conversations/{conversation}/items?order=asc&limit=100").json()["data"]
    texts = [item["content"][0]["text"] for item in items]
    assert texts == [text for number, turn in enumerate(turns) for text in (f"Turn {number}", said(turn))]


def test_what_a_rolling_update_leaves_no_time_for_ends_truthfully_and_is_kept(
    server: Bot, cluster: RayCluster, arguments: tuple[str, ...]
) -> None:
    """The last test here: it leaves other settings."""
    streamed = Streaming(server, input=LONG, max_output_tokens=MOST)
    alone = made(server, "/v1/responses", input=LONG, max_output_tokens=MOST, background=True)
    streamed.begun()
    deploy(cluster, "causerie.ray:build", *arguments, "max_tokens=512")
    ended = streamed.finish()
    assert ended.whole and ended.end["error"]["type"] == "server_shutting_down"
    again = read_again(server, ended.id)
    assert (again.text, again.events[-1]) == (ended.text, ended.events[-1])
    kept = read_again(server, alone["id"])
    assert kept.end["error"]["type"] == "server_shutting_down"
    assert said(kept.end) == kept.text != ""
