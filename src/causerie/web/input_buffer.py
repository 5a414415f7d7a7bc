"""What is being typed on a socket: read ahead while it is, then the last message of a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from causerie.chat.archive import Archive
from causerie.chat.buffer import Typing
from causerie.chat.records import Item
from causerie.chat.service import ChatService
from causerie.errors import InvalidRequest
from causerie.wire.responses_request import ResponseCall


class InputBuffer:
    """At most one text at a time; what edits none changes nothing. ``close`` it in a ``finally``.

    ``on_prefilled`` is told how many tokens are settled, and how many of them the model has read.
    """

    def __init__(
        self, service: ChatService, archive: Archive, owner: str, on_prefilled: Callable[[int, int], None]
    ) -> None:
        self._service = service
        self._archive = archive
        self._owner = owner
        self._on_prefilled = on_prefilled
        self._typing: Typing | None = None
        self._history: Sequence[Item] = ()

    async def open(self, call: ResponseCall, history: Sequence[Item] | None) -> None:
        """Begin the message that ``call`` is to end with. Raises what ``Archive.history`` raises, or TypedTextLimit."""
        self.close()
        if history is None:
            history = await self._archive.history(self._owner, call)
        prompt = replace(call, input=(*call.input, Item("", "user", ""))).prompt(history)
        beside = sum(len(item.text) for item in call.input) + len(call.instructions or "")
        self._history = history
        self._typing = self._service.typing(prompt, owner=self._owner, beside=beside, on_prefilled=self._on_prefilled)

    def append(self, text: str) -> None:
        """Raises RequestTooLarge or TypedTextLimit, and then adds nothing."""
        if self._typing is not None:
            self._typing.append(text)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` characters. Raises InvalidRequest if there are fewer."""
        if self._typing is not None:
            self._typing.truncate(length)

    async def commit(self) -> tuple[str, Sequence[Item]]:
        """What was typed, and behind what, once the model does not read it ahead any more; the buffer is closed.

        Raises InvalidRequest where nothing was, and then it stays open.
        """
        typing = self._typing
        if typing is None or not len(typing):
            raise InvalidRequest("The input text buffer is empty.", param="type")
        self._typing = None
        text = typing.text
        await typing.commit()
        return text, self._history

    def close(self) -> None:
        """Safe to call twice."""
        if self._typing is not None:
            self._typing.close()
            self._typing = None
