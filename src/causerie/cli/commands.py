"""The ``causerie`` command's own help, and its subcommands."""

from __future__ import annotations

from typing import Any

import click

import causerie as package
from causerie.cli.ask import ask
from causerie.cli.chat import chat
from causerie.cli.keys import keys
from causerie.cli.main import INTERRUPTED, PIPE_CLOSED, Leave
from causerie.cli.pull import pull
from causerie.cli.serve import serve


class Commands(click.Group):
    """A group that leaves Ctrl-C and closed pipes to us: click would print an empty line, and exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Leave(INTERRUPTED) from None
        except BrokenPipeError:
            raise Leave(PIPE_CLOSED) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # In the order in which a newcomer needs them.


@click.group(cls=Commands, invoke_without_command=True, context_settings={"max_content_width": 110})
@click.version_option(package.__version__, message="causerie %(version)s")
@click.pass_context
def causerie(context: click.Context) -> None:
    """Serve chat models, and talk to them, token by token.

    \b
    First time here?
      causerie ask "Why is the sky blue?"    fetches a small model once, and answers
      causerie chat                          a conversation in this terminal
      causerie serve                         the same over HTTP, WebSocket and the OpenAI API

    \b
    While a server runs, from another terminal:
      curl -N -d "Why is the sky blue?" http://localhost:8000/

    Every setting is a flag, a CAUSERIE_... variable or a line of a YAML file; causerie serve --help lists them.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (serve, ask, chat, pull, keys):
    causerie.add_command(command)
