"""The line that a person types at a terminal: edited, remembered, and seen while it changes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from prompt_toolkit import PromptSession
from prompt_toolkit.output import create_output


class Line:
    """``on_change`` is given the line's text each time it changes, within the event loop of ``read``."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        output = None if sys.stdout.isatty() else create_output(sys.stderr)
        self._session: PromptSession[str] = PromptSession(
            "> ", output=output, enable_suspend=True, reserve_space_for_menu=0
        )
        self._session.default_buffer.on_text_changed += lambda buffer: on_change(buffer.text)

    async def read(self) -> str | None:
        """The next line, when Enter is pressed; None if the person leaves, by Ctrl-C or Ctrl-D."""
        try:
            # A dumb terminal is shown the prompt before it hands over single keys: Ctrl-D at once would be lost.
            with self._session.input.raw_mode():
                return await self._session.prompt_async()
        except (EOFError, KeyboardInterrupt):
            return None
