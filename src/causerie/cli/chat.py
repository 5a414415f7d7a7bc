"""``causerie chat``: a conversation in the terminal."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from causerie.cli.talk import Talker, talker_options, talking
from causerie.cli.terminal import Output, tell
from causerie.errors import CauserieError, ContextLengthExceeded, InvalidRequest, PreviousResponseNotFound
from causerie.types import FinishReason

if TYPE_CHECKING:
    from causerie.cli.line import Line

_SURROGATE = re.compile("[\ud800-\udfff]")
"""What a terminal that does not speak UTF-8 makes of a letter: the turn is refused for it."""

HELP = """\
/new   start a new conversation
/help  this
/quit  leave (so does Ctrl-D)
Ctrl-C while an answer comes stops the answer; at the prompt it leaves."""


@click.command()
@click.option("--system", metavar="TEXT", help="Instructions to the model, before the conversation.")
@talker_options
def chat(
    system: str | None,
    open_talker: Callable[[], Talker],
) -> None:
    """Talk with a model in the terminal.

    The conversation is kept until you leave. Ctrl-C stops an answer, and the model remembers what it had
    said up to there. Without --server the model runs in this process. The model reads while you type, here and on
    a causerie server, which then keeps the conversation.

    \b
    Examples:
      causerie chat
      causerie chat --system "You answer in rhyme."
      causerie chat --server localhost:8000

    In the chat, /help lists the commands.
    """
    talker = open_talker()
    with talking(talker) as runner:
        Repl(talker, runner, system).run()


class Repl:
    """Reads a turn, streams its answer, remembers both; until the person leaves.

    Without a terminal at standard input each line is a turn, and the first error ends it. At a terminal the turn is
    shown to the dialogue while it is typed.
    """

    def __init__(self, talker: Talker, runner: asyncio.Runner, system: str | None) -> None:
        self._talker = talker
        self._runner = runner
        self._system = system
        self._output = Output()
        self._line = _line(self._show)
        self._dialogue = runner.run(talker.dialogue(system))

    def run(self) -> None:
        try:
            if self._line is not None:
                tell(f"Talking to {self._talker.name}. Ctrl-C stops an answer, Ctrl-D leaves, /help says more.")
            while (line := self._read()) is not None:
                if line.startswith("/"):
                    if not self._command(line):
                        return
                elif line:
                    self._turn(line)
        finally:
            self._runner.run(self._dialogue.aclose())

    def _read(self) -> str | None:
        if sys.stdin is None:
            return None
        try:
            line = input() if self._line is None else self._runner.run(self._line.read())
        except (EOFError, KeyboardInterrupt):
            return None
        return None if line is None else line.strip()

    def _show(self, line: str) -> None:
        is_turn = not line.lstrip().startswith("/") and _SURROGATE.search(line) is None
        self._dialogue.show(line.strip() if is_turn else "")

    def _command(self, line: str) -> bool:
        """Obey a command; False when it is to leave."""
        match line.split()[0]:
            case "/quit":
                return False
            case "/new":
                self._runner.run(self._dialogue.aclose())
                self._dialogue = self._runner.run(self._talker.dialogue(self._system))
                tell("A new conversation.")
            case "/help":
                tell(HELP)
            case unknown:
                tell(f"There is no {unknown}. {HELP}")
        return True

    def _turn(self, line: str) -> None:
        note = None
        try:
            if _SURROGATE.search(line) is not None:
                raise InvalidRequest("This line is not UTF-8 text.")
            self._runner.run(self._answer(line))
            if self._dialogue.finish_reason is FinishReason.LENGTH:
                note = "(the output limit; --max-tokens raises it)"
        except KeyboardInterrupt:
            note = "(stopped)"
        except CauserieError as error:
            if self._line is None:
                raise
            note = f"causerie: {error}"
            if error.code in {ContextLengthExceeded.code, PreviousResponseNotFound.code}:
                note += " (/new starts again.)"
        finally:
            self._output.end_line()
        if dropped := self._dialogue.dropped_messages:
            tell(f"(the oldest {dropped} messages no longer fit and are forgotten)")
        if note is not None and self._line is not None:
            tell(note)

    async def _answer(self, line: str) -> None:
        async with aclosing(self._dialogue.say(line)) as answer:
            async for text in answer:
                self._output.write(text)


def _line(on_change: Callable[[str], None]) -> Line | None:
    """None without a terminal to type at."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    from causerie.cli.line import Line

    return Line(on_change)
