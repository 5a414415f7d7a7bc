"""The client: ``async with AsyncClient("localhost:8000") as client``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Unpack
from weakref import WeakSet

from causerie.client.ahead import Ahead
from causerie.client.answer import AsyncAnswer
from causerie.client.retry import repeated
from causerie.client.server import Call, Patience, Server
from causerie.client.streams import ResponseStream, Sampling, TextStream
from causerie.errors import CauserieError


class AsyncClient:
    """A causerie server at ``url``. Without ``api_key`` the variable ``CAUSERIE_API_KEY`` is used. Close it.

    Belongs to one event loop, and serves any number of its tasks at once.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, patience: Patience | None = None
    ) -> None:
        self._server = Server(url, api_key, patience or Patience())
        self._answers = WeakSet[AsyncAnswer]()
        self._aheads = WeakSet[Ahead]()

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._server.url

    def text(self, prompt: str, **sampling: Unpack[Sampling]) -> AsyncAnswer:
        """The answer to one prompt, asked for when it is first read. Nothing of it is kept by the server."""
        answer = AsyncAnswer(TextStream(self._server, prompt, sampling), self._server.patience)
        self._answers.add(answer)
        return answer

    def chat(
        self,
        *,
        instructions: str | None = None,
        conversation: str | None = None,
        after: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncChat:
        """Talk in turns: from nothing, in a ``conversation`` by its id, or ``after`` a response by its id.

        A conversation is everybody's who has its id and the key; what came after a response is this chat's own.
        """
        ahead = Ahead(self._server)
        self._aheads.add(ahead)
        return AsyncChat(self._server, self._answers, ahead, _fields(instructions, sampling), conversation, after)

    async def create_conversation(self, metadata: Mapping[str, str] | None = None) -> str:
        """The id of a new conversation, which the server keeps."""
        call = Call("POST", "/v1/conversations", json={"metadata": dict(metadata or {})})
        made = await repeated(lambda: self._server.json(call), self._server.patience)
        return str(made["id"])

    async def aclose(self) -> None:
        """Stop what is still being answered, and leave."""
        for ahead in list(self._aheads):
            await ahead.aclose()
        for answer in list(self._answers):
            with contextlib.suppress(CauserieError):
                await answer.aclose()
        await self._server.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncChat:
    """Turns, one after the other. Made by ``AsyncClient.chat``."""

    def __init__(
        self,
        server: Server,
        answers: WeakSet[AsyncAnswer],
        ahead: Ahead,
        fixed: Mapping[str, Any],
        conversation: str | None,
        after: str | None,
    ) -> None:
        self._server = server
        self._answers = answers
        self._ahead = ahead
        self._typed = ""
        self._sending = asyncio.Lock()
        self._fixed = fixed
        self._conversation = conversation
        self._after = after
        self._answer: AsyncAnswer | None = None

    @property
    def last(self) -> str | None:
        """The id of the last response: where ``AsyncClient.chat(after=…)`` goes on."""
        return self._after

    @property
    def typed(self) -> str:
        """What has been typed of the next turn."""
        return self._typed

    @property
    def prefilled(self) -> tuple[int, int] | None:
        """While typing: how many tokens of the conversation and the typed text are settled, and how many of them the
        model has read. None where the server does not say."""
        return self._ahead.prefilled

    def type(self, text: str) -> None:
        """Add to the next turn, which the server reads ahead; ``send`` sends it. Waits for nothing."""
        self._edit(self._typed + text)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` characters of what has been typed."""
        self._edit(self._typed[:length])

    async def send(self, text: str | None = None) -> AsyncAnswer:
        """Say ``text``, or what has been typed; the answer has been accepted, and is to be read.

        One that still comes is interrupted. What is typed from now on is the next turn's, and another ``send`` waits
        for this one. What has been typed stays if this raises, before what was typed since. When it is cancelled, it
        ends after it has stopped what the server may have begun.
        """
        async with self._sending:
            before, self._typed = self._typed, ""
            try:
                await self.interrupt()
                answer = await self._ask(before if text is None else text)
            except BaseException:
                since, self._typed = self._typed, before + self._typed
                if since:
                    self._show()
                raise
            self._answer, self._after = answer, answer.id
            self._ahead.done()
            return answer

    async def _ask(self, text: str) -> AsyncAnswer:
        answer = AsyncAnswer(ResponseStream(self._server, self._body() | {"input": text}), self._server.patience)
        self._answers.add(answer)
        try:
            await answer.begin()
        except BaseException:
            # The server may have begun it, and would go on with it, and keep others out of the conversation meanwhile.
            with contextlib.suppress(CauserieError):
                await answer.aclose()
            raise
        return answer

    async def interrupt(self) -> None:
        """Stop the answer that is being given, if one is. What it had said stays said."""
        if self._answer is not None:
            await self._answer.cancel()

    def _edit(self, text: str) -> None:
        self._typed = text
        # What is being sent is not typed any more, and should that fail, it is before this text.
        if not self._sending.locked():
            self._show()

    def _show(self) -> None:
        # What the answer will have said is not known yet, and the turn comes behind it.
        if self._answer is None or self._answer.ended:
            self._ahead.show(self._typed, self._body())

    def _body(self) -> dict[str, Any]:
        if self._conversation is not None:
            return {**self._fixed, "conversation": self._conversation}
        return {**self._fixed, "previous_response_id": self._after}


def _fields(instructions: str | None, sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {"truncation": "auto", "instructions": instructions, **sampling}
    if "max_tokens" in fields:
        fields["max_output_tokens"] = fields.pop("max_tokens")
    return fields
