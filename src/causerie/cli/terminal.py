"""Writing to the person or pipe at the other end of standard output."""

from __future__ import annotations

import sys

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Output:
    """Standard output for an answer: flushed piece by piece, and plain text when it is not a terminal.

    On a terminal, control characters are shown and not obeyed: what a model says must not move the cursor.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last = "\n"

    def write(self, text: str) -> None:
        sys.stdout.write(text.translate(_CONTROLS) if self._terminal else text)
        sys.stdout.flush()
        self._last = text[-1:] or self._last

    def end_line(self) -> None:
        """Begin a new line unless one has just begun."""
        if self._last != "\n":
            self.write("\n")


def tell(text: str) -> None:
    """One line to the person, apart from the answer."""
    print(text, file=sys.stderr, flush=True)
