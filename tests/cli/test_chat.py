"""``causerie chat``: what is remembered, and that Ctrl-C stops the answer and not the program."""

from __future__ import annotations

import io
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterable, Sequence

import pytest

from causerie.chat.build import scripted_service
from causerie.cli.chat import Repl
from causerie.cli.talk import LocalTalker, talking
from causerie.config import Settings
from causerie.engines.scripted import IM_END, ScriptedEngine
from causerie.types import SamplingParams
from tests.cli.command import COMMAND, DEADLINE, SCRIPTED, causerie, environment, one_line, serving
from tests.cli.terminal import CTRL_C, CTRL_D, Terminal, terminal

LONG = "tide " * 150


def test_each_piped_line_is_a_turn() -> None:
    done = causerie("chat", *SCRIPTED, stdin=b"one\n\n  two  \n/new\nthree")
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert [line.split(".")[0] for line in lines] == ["You said: one", "You said: two", "You said: three"]


def test_a_line_that_is_not_utf8_is_refused_as_that() -> None:
    done = causerie("chat", *SCRIPTED, stdin=b"one\nbad \xff byte\n")
    assert (done.returncode, done.stdout.count(b"You said: ")) == (1, 1)
    assert "not UTF-8" in one_line(done.stderr)


def test_a_closed_standard_input_is_an_empty_one() -> None:
    command = shlex.join([*COMMAND, "chat", *SCRIPTED])
    done = subprocess.run(f"{command} <&-", shell=True, capture_output=True, timeout=DEADLINE, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_server_can_be_talked_to() -> None:
    with serving() as (_, url):
        done = causerie("chat", "--server", url, stdin=b"one\ntwo\n")
    assert (done.returncode, done.stdout.count(b"You said: ")) == (0, 2)


def test_piped_turns_end_at_the_first_error() -> None:
    done = causerie("chat", *SCRIPTED, stdin=b"x" * 9000 + b"\nhello\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert "context window" in one_line(done.stderr)


def test_the_oldest_turns_make_room() -> None:
    turns = [letter * 3000 for letter in "abc"]
    done = causerie("chat", *SCRIPTED, "--max-tokens", "20", stdin="\n".join(turns).encode())
    assert (done.returncode, done.stdout.count(b"You said: ")) == (0, 3)
    assert done.stderr == b"(the oldest 2 messages no longer fit and are forgotten)\n"


def test_a_turn_that_never_fits_says_so_and_leaves_the_chat_open() -> None:
    with serving() as (_, url), terminal("chat", "--server", url, "--system", "y" * 9000) as screen:
        screen.wait_for("> ")
        screen.type("hello\n")
        screen.wait_for(r"causerie: .*context window.*\(/new starts again\.\)\n> ")
        screen.type("/new\n")
        screen.wait_for("A new conversation.\n> ")


LINE = "The harbour was quiet that morning, and two boats lay against the wall. " * 6


def _stop_and_go_on(screen: Terminal) -> None:
    screen.type(LONG + "\n")
    screen.wait_for("You said: tide")
    screen.type(CTRL_C)
    screen.wait_for(r"\(stopped\)\n> ")
    screen.type("hello\n")
    screen.wait_for("You said: hello.*this way.\n> ")


def test_a_conversation_with_a_server_survives_ctrl_c() -> None:
    with serving() as (_, url), terminal("chat", "--server", url) as screen:
        screen.wait_for("> ")
        _stop_and_go_on(screen)


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    with terminal("chat", *SCRIPTED) as screen:
        screen.wait_for("Talking to scripted.*\n> ")
        _stop_and_go_on(screen)
        screen.type(CTRL_D)
        assert screen.end() == 0


@pytest.mark.parametrize("leave", ["/quit\n", CTRL_C, CTRL_D])
def test_leaving_at_the_prompt(leave: str) -> None:
    with terminal("chat", *SCRIPTED) as screen:
        screen.wait_for("> ")
        screen.type(leave)
        assert screen.end() == 0
        assert "Traceback" not in screen.seen


def test_commands_are_explained() -> None:
    with terminal("chat", *SCRIPTED) as screen:
        screen.wait_for("> ")
        screen.type("/halp\n")
        screen.wait_for("There is no /halp.*/new .*\n(.*\n)*> ")
        screen.type("/help\n")
        screen.wait_for("/quit .*\n(.*\n)*> ")


def test_an_error_at_a_terminal_leaves_the_chat_open() -> None:
    with serving() as (server, url), terminal("chat", "--server", url) as screen:
        screen.wait_for("> ")
        assert server.stop(signal.SIGTERM) == 0
        screen.type("hello\n")
        screen.wait_for("causerie: No server answers.*\n> ")
        screen.type(CTRL_D)
        assert screen.end() == 0


def test_a_server_that_forgot_the_conversation_is_told_of_and_the_chat_goes_on() -> None:
    """It kept nothing over its restart."""
    with serving() as (server, url), terminal("chat", "--server", url) as screen:
        screen.wait_for("> ")
        screen.type("one\n")
        screen.wait_for("You said: one.*\n> ")
        assert server.stop(signal.SIGTERM) == 0
        with serving("--port", url.rpartition(":")[2]):
            screen.type("two\n")
            screen.wait_for(r"causerie: No response .*\(/new starts again\.\)\n> ")
            screen.type("/new\nthree\n")
            screen.wait_for("You said: three")


class Prompts:
    """A script that keeps every prompt it was given, and answers five words."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, prompt: Sequence[int]) -> Iterable[int]:
        self.seen.append("".join("|" if id_ > 255 else chr(id_) for id_ in prompt))
        return [*b"word " * 5, IM_END]


class Screen(io.StringIO):
    """A standard output whose reader presses Ctrl-C once, after two words."""

    pressed = False

    def write(self, text: str) -> int:
        written = super().write(text)
        if not self.pressed and "word word" in self.getvalue():
            self.pressed = True
            signal.raise_signal(signal.SIGINT)
        return written


def test_what_was_said_before_ctrl_c_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, permits = Prompts(), threading.Semaphore(0)
    engine = ScriptedEngine(prompts, permits=permits, ids_per_step=5)
    talker = LocalTalker(scripted_service(Settings(), engine), SamplingParams(max_tokens=100))
    turns = iter(["first", "second"])

    def next_turn() -> str:
        try:
            turn = next(turns)
        except StopIteration:
            raise EOFError from None
        permits.release(2 if turn == "first" else 1000)
        return turn

    monkeypatch.setattr("builtins.input", next_turn)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdout", Screen())
    with talking(talker) as runner:
        Repl(talker, runner, system=None).run()
    remembered = prompts.seen[1]
    assert "assistant\nword word " in remembered
    assert "word word word" not in remembered
    assert remembered.index("first") < remembered.index("word word") < remembered.index("second")
