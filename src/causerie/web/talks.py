"""What a plain chat socket's turns belong to: a conversation that lives as long as the socket, or one that is kept."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Protocol

from causerie.chat.archive import Archive
from causerie.chat.conversation import Conversation
from causerie.chat.log import ResponseLog
from causerie.chat.records import Item
from causerie.chat.response import Turn
from causerie.chat.service import ChatService
from causerie.types import GenerationRequest, Started
from causerie.wire.items import new_item_id
from causerie.wire.responses_request import ResponseCall
from causerie.wire.textbot import SocketCall


class Talk(Protocol):
    async def begin(self, turn: str) -> ResponseLog:
        """Have the turn answered. The caller takes a reader at once. Raises what ``ChatService.create`` raises."""
        ...

    def started(self, event: Started) -> None: ...

    def said(self, turn: str, answer: Sequence[str]) -> None:
        """The turn was answered to its end, with pieces of text."""


class PassingTalk:
    """Nothing of it is kept."""

    def __init__(self, service: ChatService, call: SocketCall) -> None:
        self._service = service
        self._call = call
        self._conversation = Conversation(overflow=service.settings.context_overflow)
        self._turn = Turn()

    async def begin(self, turn: str) -> ResponseLog:
        prompt = self._conversation.prompt_with(turn)
        request = GenerationRequest(uuid.uuid4().hex, prompt, self._call.sampling, stop=self._call.stop)
        self._turn = Turn(self._turn.after, continues=bool(self._conversation.messages))
        return await self._service.create(request, turn=self._turn)

    def started(self, event: Started) -> None:
        self._conversation.forget(event.dropped_messages)

    def said(self, turn: str, answer: Sequence[str]) -> None:
        self._conversation.record(turn, "".join(answer))


class KeptTalk:
    """Its turns are responses of a stored conversation, which others may read and go on with."""

    def __init__(self, service: ChatService, archive: Archive, owner: str, conversation: str, call: SocketCall) -> None:
        self._archive = archive
        self._owner = owner
        self._conversation = conversation
        self._call = call
        self._overflow = service.settings.context_overflow

    async def begin(self, turn: str) -> ResponseLog:
        sampling = self._call.sampling
        call = ResponseCall(
            input=(Item(new_item_id(), "user", turn),),
            instructions=None,
            previous=None,
            conversation=self._conversation,
            store=True,
            background=False,
            stream=True,
            overflow=self._overflow,
            sampling=sampling,
            stop=self._call.stop,
            on_disconnect=None,
            generate=True,
            parameters={"temperature": sampling.temperature, "top_p": sampling.top_p},
        )
        return (await self._archive.create(self._owner, call)).log

    def started(self, event: Started) -> None:
        """The store has all that was said."""

    def said(self, turn: str, answer: Sequence[str]) -> None:
        """The store has it already."""
