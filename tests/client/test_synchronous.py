"""The client without an event loop, and what the documentation shows."""

from __future__ import annotations

import asyncio
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from causerie.chat.service import ChatService
from causerie.client import Client
from causerie.config import Settings
from causerie.errors import ConnectionLost, InvalidRequest, PreviousResponseNotFound
from causerie.types import FinishReason
from tests.support.served import Served, scripted, served, until
from tests.support.service import endless

ROOT = Path(__file__).parents[2]
SNIPPETS = [
    snippet
    for page in ("README.md", "docs/client.md")
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    if "causerie.client" in snippet
]


def service() -> ChatService:
    """Repeats what it was told, for ever if that is told to it."""

    def script(prompt: object) -> Iterator[int]:
        said = bytes(id_ for id_ in prompt if id_ < 256)  # type: ignore[attr-defined]
        return iter(endless([])) if b"for ever" in said else iter(said)

    return scripted(script, Settings(engine="scripted"), step_seconds=0.001)


@pytest.fixture
def server() -> Iterator[Served]:
    with served(service()) as server:
        yield server


def test_text_and_chat_as_in_the_asynchronous_client(server: Served) -> None:
    with Client(server.url) as client:
        pieces = list(answer := client.text("How are you?", max_tokens=500))
        assert len(pieces) > 1 and "How are you?" in "".join(pieces)
        assert answer.finish_reason is FinishReason.STOP and answer.usage is not None
        chat = client.chat(instructions="Be kind.", max_tokens=500)
        assert "My name is Ada." in chat.send("My name is Ada.").read()
        assert "My name is Ada." in (second := chat.send("Who am I?")).read()
        assert chat.last == second.id
        talk = client.chat(conversation=client.create_conversation({"topic": "names"}))
        assert "Be kind." not in talk.send("Hi").read()
        with pytest.raises(PreviousResponseNotFound):
            client.chat(after="resp_none").send("Hi")


def test_a_turn_may_be_typed(server: Served) -> None:
    with Client(server.url) as client:
        chat = client.chat()
        chat.type("Once upon a time there was a king who had no daughters, and")
        chat.truncate(54)
        chat.type(".")
        assert chat.typed == "Once upon a time there was a king who had no daughters."
        until(lambda: chat.prefilled and chat.prefilled[1], 5)
        assert f"user\n{chat.typed}" in chat.send().read()
        assert (chat.typed, chat.prefilled) == ("", None)


def test_an_answer_is_stopped_by_a_turn_by_the_block_and_by_another_thread(server: Served) -> None:
    with Client(server.url) as client:
        chat = client.chat(max_tokens=8000)
        first = chat.send("Sing for ever")
        heard = next(first)
        first.ack(1)
        with pytest.raises(InvalidRequest):
            first.ack(0)
        chat.interrupt()
        heard += first.read()
        assert set(heard) == {"a"} and first.finish_reason is FinishReason.CANCELLED
        with client.text("Sing for ever", max_tokens=8000) as answer:
            next(answer)
        server.idle()
        third = client.text("Sing for ever", max_tokens=8000)
        stopping = threading.Timer(0.2, third.cancel)
        stopping.start()
        assert set(third.read()) == {"a"}
        stopping.join()


def test_closing_it_stops_what_still_comes_and_its_thread(server: Served) -> None:
    with Client(server.url) as client:
        answer = client.text("Sing for ever", max_tokens=8000)
        next(answer)
    server.idle()
    client.close()
    assert "causerie-client" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(RuntimeError, match="closed"):
        client.text("Hi").read()


def test_a_call_while_it_is_closed_is_told_so(server: Served) -> None:
    client = Client(server.url)
    asked, go = threading.Event(), threading.Event()
    leave = client._client.aclose

    async def held() -> None:
        asked.set()
        await asyncio.to_thread(go.wait)
        await leave()

    client._client.aclose = held  # type: ignore[method-assign]
    closers = [threading.Thread(target=client.close, daemon=True) for _ in range(2)]
    closers[0].start()
    assert asked.wait(5)
    closers[1].start()
    with pytest.raises(RuntimeError, match="closed"):
        client.text("Hi").read()
    go.set()
    for closer in closers:
        closer.join(5)
        assert not closer.is_alive()


def call_on(work: Callable[[], object], ends: queue.SimpleQueue[BaseException]) -> None:
    """Call it again and again, and say what ended that."""
    try:
        while True:
            work()
    except BaseException as error:
        ends.put(error)


def test_what_another_thread_waits_for_ends_when_it_is_closed() -> None:
    """The server takes the connection, and says nothing; whoever comes while the client is closed does not wait."""
    for _ in range(5):
        ends = queue.SimpleQueue[BaseException]()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = Client(f"127.0.0.1:{silent.getsockname()[1]}")
            chat = client.chat()
            for work in (client.create_conversation, partial(chat.truncate, 0), partial(chat.truncate, 0)):
                threading.Thread(target=call_on, args=(work, ends), daemon=True).start()
            connection, _ = silent.accept()
            client.close()
            for _ in range(3):
                error = ends.get(timeout=5)
                assert isinstance(error, RuntimeError) and "closed" in str(error), repr(error)
            connection.close()


def test_ctrl_c_interrupts_a_read_and_the_answer_can_be_read_on(server: Served) -> None:
    """As in a terminal: the signal arrives while the main thread waits."""
    with Client(server.url) as client:
        answer = client.text("Sing for ever", max_tokens=8000)
        next(answer)
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            answer.read()
        timer.join()
        assert next(answer)
        answer.cancel()
        assert set(answer.read()) <= {"a"}


def test_a_program_that_forgets_to_close_it_still_ends(server: Served) -> None:
    lines = f"answer = Client({server.url!r}).text('Sing for ever', max_tokens=8000)\nnext(answer)\nprint(answer.id)"
    code = f"from causerie.client import Client\n{lines}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.service.running == 1  # For as long as its grace.
    assert server.ask("DELETE", f"/streams/{done.stdout.strip()}").json()["cancelled"]


def test_nobody_there_is_said(server: Served) -> None:
    with Client("127.0.0.1:9") as client, pytest.raises(ConnectionLost):
        client.text("Hi").read()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_what_the_documentation_shows_runs(snippet: str, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert "http://127.0.0.1:8000" in snippet
    exec(compile(snippet.replace("http://127.0.0.1:8000", server.url), "documentation", "exec"), {})
    assert len(capsys.readouterr().out) > 20


def test_the_documentation_shows_both_forms() -> None:
    assert len(SNIPPETS) == 4
