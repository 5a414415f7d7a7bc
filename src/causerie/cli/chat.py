"""``causerie chat``: a conversation in the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from contextlib import aclosing

import click

from causerie.chat.conversation import Conversation
from causerie.cli.talk import Talker, talker_options, talking
from causerie.cli.terminal import Output, tell
from causerie.errors import CauserieError, ContextLengthExceeded
from causerie.types import FinishReason

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
    said up to there. Without --server the model runs in this process.

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

    Without a terminal at standard input each line is a turn, and the first error ends it.
    """

    def __init__(self, talker: Talker, runner: asyncio.Runner, system: str | None) -> None:
        self._talker = talker
        self._runner = runner
        self._system = system
        self._interactive = sys.stdin.isatty()
        self._output = Output()
        self._begin()

    def run(self) -> None:
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # line editing and history, where Python has it
            tell(f"Talking to {self._talker.name}. Ctrl-C stops an answer, Ctrl-D leaves, /help says more.")
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._turn(line)

    def _begin(self) -> None:
        self._conversation = Conversation(overflow="drop_oldest", system=self._system)

    def _read(self) -> str | None:
        try:
            return input("> " if self._interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            if self._interactive:
                tell("")
            return None

    def _command(self, line: str) -> bool:
        """Obey a command; False when it is to leave."""
        match line.split()[0]:
            case "/quit":
                return False
            case "/new":
                self._begin()
                tell("A new conversation.")
            case "/help":
                tell(HELP)
            case unknown:
                tell(f"There is no {unknown}. {HELP}")
        return True

    def _turn(self, line: str) -> None:
        said: list[str] = []
        note = None
        try:
            self._runner.run(self._answer(line, said))
            if self._talker.finish_reason is FinishReason.LENGTH:
                note = "(the output limit; --max-tokens raises it)"
        except KeyboardInterrupt:
            note = "(stopped)"
        except CauserieError as error:
            if not self._interactive:
                raise
            note = f"causerie: {error}"
            if error.code == ContextLengthExceeded.code:
                note += " (/new starts again.)"
        finally:
            self._output.end_line()
        if said:
            self._remember(line, "".join(said))
        if note is not None and self._interactive:
            tell(note)

    async def _answer(self, line: str, said: list[str]) -> None:
        async with aclosing(self._talker.answer(self._conversation.prompt_with(line))) as answer:
            async for text in answer:
                said.append(text)
                self._output.write(text)

    def _remember(self, line: str, answer: str) -> None:
        if dropped := self._talker.dropped_messages:
            self._conversation.forget(dropped)
            tell(f"(the oldest {dropped} messages no longer fit and are forgotten)")
        self._conversation.record(line, answer)
