"""The ``causerie`` command: what was asked for, or one line that says why not. Never a traceback.

Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 130 stopped by Ctrl-C, 141 the reader of a pipe left.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from causerie.errors import CauserieError

INTERRUPTED = 130
PIPE_CLOSED = 141


class Leave(Exception):
    """The end without a word: Ctrl-C, or a pipe without a reader, in a form that click lets pass."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> NoReturn:
    """Run the command line of this process, and end it."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    _leave(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit code. What went wrong is one line on standard error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")  # type: ignore[union-attr]
    # Only now, so that a Ctrl-C while they are imported is no traceback either.
    import click

    from causerie.cli.commands import causerie

    try:
        result = causerie.main(list(arguments), prog_name="causerie", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "causerie"
        return _complain(f"{error.format_message()} See: {where} --help", 2)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except Leave as leave:
        return leave.code
    except CauserieError as error:
        return _complain(str(error), 1)
    except Exception as error:
        if os.environ.get("CAUSERIE_LOG_LEVEL") == "debug":
            raise
        kind = type(error).__name__
        return _complain(f"internal error: {kind}: {error}. CAUSERIE_LOG_LEVEL=debug shows where.", 1)


def _complain(message: str, code: int) -> int:
    print("causerie:", " ".join(message.split()), file=sys.stderr)
    return code


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or PIPE_CLOSED
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    if len(others) > 1:
        # Interrupted while a model was being loaded: its thread cannot be stopped, and is not worth a wait.
        os._exit(code)
    sys.exit(code)
