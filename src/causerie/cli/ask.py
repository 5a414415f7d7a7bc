"""``causerie ask``: one question, its answer on standard output as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import aclosing

import click

from causerie.cli.talk import AnyPrompt, Talker, talker_options, talking
from causerie.cli.terminal import Output, tell
from causerie.errors import InvalidRequest
from causerie.types import ChatPrompt, FinishReason, Message, TextPrompt


@click.command()
@click.argument("prompt", nargs=-1)
@click.option("--system", metavar="TEXT", help="Instructions to the model, before the question.")
@click.option("--raw", is_flag=True, help="Let the model continue the text bare, without its chat template.")
@talker_options
def ask(
    prompt: tuple[str, ...],
    system: str | None,
    raw: bool,
    open_talker: Callable[[], Talker],
) -> None:
    """Ask one question.

    The answer streams to standard output. What is piped in is added to the question. Without --server the
    model runs in this process.

    \b
    Examples:
      causerie ask "Why is the sky blue?"
      cat notes.txt | causerie ask "Summarise this in three points."
      causerie ask --temperature 0 --max-tokens 50 "Name the planets." > planets.txt
      causerie ask --server localhost:8000 "Are you there?"

    \b
    Exit code: 0 answered, 1 failed or cut off, 2 wrong usage, 130 stopped by Ctrl-C.
    Next: causerie chat keeps the conversation; causerie serve shares the model.
    """
    if raw and system is not None:
        raise click.UsageError("--raw leaves the text as it is, so --system has no place in it.")
    question = _question(" ".join(prompt))
    asked: AnyPrompt = TextPrompt(question) if raw else _conversation(system, question)
    talker = open_talker()
    output = Output()
    with talking(talker) as runner:
        try:
            runner.run(_say(talker, asked, output))
        finally:
            output.end_line()
    if talker.finish_reason is FinishReason.LENGTH and sys.stderr.isatty():
        tell("causerie: that was the output limit, not the answer's end; --max-tokens raises it.")


async def _say(talker: Talker, prompt: AnyPrompt, output: Output) -> None:
    async with aclosing(talker.answer(prompt)) as answer:
        async for text in answer:
            output.write(text)


def _question(argument: str) -> str:
    piped = "" if sys.stdin is None or sys.stdin.isatty() else _read_stdin()
    question = "\n\n".join(part for part in (argument, piped) if part.strip())
    if not question:
        raise click.UsageError('There is no question. Say one, as in: causerie ask "Why is the sky blue?"')
    return question


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"What was piped in is not UTF-8 text (byte {error.start}).") from None


def _conversation(system: str | None, question: str) -> ChatPrompt:
    before = () if system is None else (Message("system", system),)
    return ChatPrompt((*before, Message("user", question)))
