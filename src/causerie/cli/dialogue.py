"""A conversation with whoever answers: who remembers what was said, and who reads a turn while it is typed."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Protocol

from causerie.chat.conversation import Conversation
from causerie.errors import CauserieError
from causerie.types import FinishReason

if TYPE_CHECKING:
    from causerie.chat.buffer import Typing
    from causerie.chat.service import ChatService
    from causerie.cli.talk import Talker


class Dialogue(Protocol):
    """One conversation, turn by turn. Close it."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last answer ended: STOP or LENGTH; None until it has."""
        ...

    @property
    def dropped_messages(self) -> int:
        """How many of the oldest messages were forgotten for the last answer, as far as is known."""
        ...

    def show(self, text: str) -> None:
        """What is typed of the next turn so far. It may be read ahead; nothing is waited for, and nothing raised."""
        ...

    def say(self, text: str) -> AsyncGenerator[str, None]:
        """The answer to a turn, as it comes. Raises CauserieError if it was refused, or did not reach its end.

        Close it (``aclosing``) to stop the answer where it is: what had been said by then stays said.
        """
        ...

    async def aclose(self) -> None: ...


class PlainDialogue:
    """The conversation is kept here, and sent whole for each turn."""

    def __init__(self, talker: Talker, system: str | None) -> None:
        self._talker = talker
        self._conversation = Conversation(overflow="drop_oldest", system=system)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._talker.finish_reason

    @property
    def dropped_messages(self) -> int:
        return self._talker.dropped_messages

    def show(self, text: str) -> None:
        """Nobody reads it ahead."""

    async def say(self, text: str) -> AsyncGenerator[str, None]:
        said: list[str] = []
        try:
            async with aclosing(self._talker.answer(self._conversation.prompt_with(text))) as answer:
                async for piece in answer:
                    said.append(piece)
                    yield piece
        finally:
            self._conversation.forget(self._talker.dropped_messages)
            if said:
                self._conversation.record(text, "".join(said))

    async def aclose(self) -> None:
        """Nothing is held."""


class LocalDialogue(PlainDialogue):
    """The model of this process reads a turn while it is typed."""

    def __init__(self, talker: Talker, service: ChatService, system: str | None) -> None:
        super().__init__(talker, system)
        self._service = service
        self._typing: Typing | None = None

    def show(self, text: str) -> None:
        if self._typing is None:
            self._typing = self._service.typing(self._conversation.prompt_with(""))
        before = self._typing.text
        kept = len(before)
        if not text.startswith(before):
            kept = len(os.path.commonprefix([before, text]))  # noqa: RUF071  # Characters are what is meant.
            self._typing.truncate(kept)
        with suppress(CauserieError):  # Too long: the turn itself will be told so.
            self._typing.append(text[kept:])

    async def say(self, text: str) -> AsyncGenerator[str, None]:
        if self._typing is not None:
            typing, self._typing = self._typing, None
            await typing.commit()
        async with aclosing(super().say(text)) as answer:
            async for piece in answer:
                yield piece

    async def aclose(self) -> None:
        if self._typing is not None:
            self._typing.close()
            self._typing = None
