"""A Python process of our own that answers one question at a time, over its standard input and output.

For a runtime that holds the interpreter's lock while it computes: in a process of its own it holds only its own.
Questions and answers are pickled, which is safe between a process and the child that it started itself, over pipes
that nobody else has.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_GOODBYE_SECONDS = 10.0


class ChildError(Exception):
    """The child answered with an error, whose text this is."""


class ChildDied(Exception):
    """The child is gone, and with it whatever it was asked."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    text: str


class Child:
    """Answers by what ``handler()`` of the module ``module`` returns. It finds the same modules as this process.

    It ends when it is closed or when this process is gone, however that went: its standard input ends then. What it
    or a library of it prints goes to standard error. One thread may use it.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import answer; answer('{module}')"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._questions = self._process.stdin
        self._answers = self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: object) -> Any:
        """The answer, which this waits for without the interpreter's lock. Raises ChildError or ChildDied."""
        try:
            pickle.dump(question, self._questions, pickle.HIGHEST_PROTOCOL)
            self._questions.flush()
            answer = pickle.load(self._answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise ChildDied(f"Process {self.pid} {self._how_it_ended()}.") from None
        if isinstance(answer, _Refusal):
            raise ChildError(answer.text)
        return answer

    def close(self) -> None:
        """Returns when the process has ended. Safe to call twice."""
        for pipe in (self._questions, self._answers):
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # It was gone before it had read everything.
        try:
            self._process.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            return "answers no more"
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"


def answer(module: str) -> NoReturn:
    """The child's side: answer every question by ``module``'s ``handler()`` until there are no more; never returns.

    Ctrl-C and SIGTERM reach a whole group of processes, and it is the parent who decides what they mean.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    handle: Callable[[Any], object] = importlib.import_module(module).handler()
    try:
        while True:
            question = pickle.load(questions)
            try:
                said: object = handle(question)
            except Exception as error:
                said = _Refusal(last_line(error))
            pickle.dump(said, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # There is nobody to tidy up for, and a runtime's own tidying can take long.


def last_line(error: Exception) -> str:
    """What a runtime says is wrong; the lines above are its source files."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
