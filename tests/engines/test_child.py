"""A child process that answers: what it survives, and what it says when it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from causerie.engines.child import Child, ChildDied, ChildError

HANDLER = "tests.engines.child_handler"


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child(HANDLER)
    yield child
    child.close()


def test_questions_are_answered_in_turn(child: Child) -> None:
    assert [child.ask(question) for question in (1, b"\n\0", list(range(100_000)))] == [
        1,
        b"\n\0",
        list(range(100_000)),
    ]


def test_an_error_is_one_line_and_the_next_question_is_answered(child: Child) -> None:
    with pytest.raises(ChildError, match=r"^no such thing$"):
        child.ask("fail")
    assert child.ask("next") == "next"


def test_what_it_prints_is_no_answer_and_its_input_is_not_its_handlers(child: Child) -> None:
    assert child.ask("print") == ""
    assert child.ask("next") == "next"


def test_a_death_is_told_with_its_signal(child: Child) -> None:
    with pytest.raises(ChildDied, match="SIGKILL"):
        child.ask("die")
    assert not is_running(child.pid)


def test_one_that_died_unseen_is_told_too(child: Child) -> None:
    child.ask(1)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildDied, match="SIGKILL"):
        child.ask(2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_reach_the_whole_group_are_the_parents_business(child: Child, number: signal.Signals) -> None:
    child.ask(1)
    os.kill(child.pid, number)
    assert child.ask(2) == 2


def test_it_ends_when_closed_and_closing_twice_is_fine(child: Child) -> None:
    child.ask(1)
    child.close()
    child.close()
    assert not is_running(child.pid)


def test_waiting_for_an_answer_lets_other_threads_run(child: Child) -> None:
    child.ask(1)
    asking = threading.Thread(target=child.ask, args=("sleep",))
    asking.start()
    ticks = 0
    while asking.is_alive():
        time.sleep(0.005)
        ticks += 1
    assert ticks > 10


def test_it_ends_when_its_parent_is_killed() -> None:
    code = (
        "import sys, time; from causerie.engines.child import Child; "
        f"child = Child({HANDLER!r}); child.ask(1); print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process is there and not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
