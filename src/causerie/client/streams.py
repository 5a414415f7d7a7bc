"""The two ways in which an answer is streamed, and where each goes on after a cut."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypedDict

import httpx2

from causerie.client.server import Call, Cut, Server, error_of
from causerie.errors import Cancelled, DuplicateRequest, InvalidRequest, ResponseNotFound, StreamExpired, error_named
from causerie.types import FinishReason, Usage


class Sampling(TypedDict, total=False):
    """How to sample an answer; names and meanings as in ``causerie.types.SamplingParams``."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    min_tokens: int
    ignore_eos: bool
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended that did not fail."""

    reason: FinishReason
    usage: Usage


class TextStream:
    """``POST /``, under an id that the client chose, so that it can be asked for whatever the connection did."""

    def __init__(self, server: Server, prompt: str, sampling: Sampling) -> None:
        self.id: str | None = uuid.uuid4().hex
        self.end: End | None = None
        self._server = server
        self._headers = {"X-Request-Id": self.id, "Accept": "text/event-stream"}
        said = {**self._headers, "X-On-Disconnect": server.patience.grace, "Content-Type": "text/plain; charset=utf-8"}
        self._first = Call("POST", "/", said, query=sampling, content=prompt)
        self._sent = False
        self._cancelled = False
        self._number = 0

    async def open(self) -> AsyncGenerator[str, None]:
        if self._cancelled and not self._sent:
            self.end = End(FinishReason.CANCELLED, Usage())
            return
        if self._sent:
            again = Call("GET", f"/streams/{self.id}", self._headers, query={"starting_after": self._number})
            try:
                async with aclosing(self._read(again)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except ResponseNotFound:
                if self._number:
                    raise
        self._sent = True
        async with aclosing(self._read(self._first)) as pieces:
            async for piece in pieces:
                yield piece

    async def _read(self, call: Call) -> AsyncGenerator[str, None]:
        async with self._server.events(call) as events:
            if self._cancelled:  # It may have been asked to end before there was anything to be ended.
                with suppress(ResponseNotFound, StreamExpired):
                    await self.cancel()
            yield ""
            async for event in events:
                self._number = int(event.id.rpartition(":")[2])
                piece = self._take(event)
                if self.end is not None:
                    return
                yield piece
        raise Cut("it ended in the middle")

    def _take(self, event: httpx2.ServerSentEvent) -> str:
        body = json.loads(event.data)
        match event.event:
            case "done":
                self.end = End(FinishReason(body["finish_reason"]), _usage(body["usage"], "prompt", "completion"))
            case "error":
                error = error_of(body["error"])
                if not isinstance(error, Cancelled):
                    error.request_id = self.id
                    raise error
                self.end = End(FinishReason.CANCELLED, Usage())
            case _:
                return str(body)
        return ""

    async def cancel(self) -> None:
        self._cancelled = True
        if self._sent:
            await self._server.json(Call("DELETE", f"/streams/{self.id}"))

    async def ack(self, characters: int) -> None:
        raise InvalidRequest("Nothing is kept of a text's answer, so there is nothing to acknowledge.")


class ResponseStream:
    """``POST /v1/responses``; ``body`` is the request, whose answer is kept by the server."""

    def __init__(self, server: Server, body: Mapping[str, Any]) -> None:
        self.id: str | None = None
        self.end: End | None = None
        self._server = server
        # Should the connection be cut before the id is known, the same key finds the response that was begun.
        headers = {"Idempotency-Key": uuid.uuid4().hex, "X-On-Disconnect": server.patience.grace}
        self._first = Call("POST", "/v1/responses", headers, json={**body, "stream": True})
        self._sent = False
        self._cancelled = False
        self._number = -1

    async def open(self) -> AsyncGenerator[str, None]:
        if self._cancelled and not self._sent:
            self.end = End(FinishReason.CANCELLED, Usage())
            return
        self._sent = True
        call = self._first
        if self._number >= 0:
            call = Call("GET", f"/v1/responses/{self.id}", query={"stream": "true", "starting_after": self._number})
        async with self._server.events(call) as events:
            yield ""
            async for event in events:
                body = json.loads(event.data)
                self._number = body["sequence_number"]
                piece = self._take(body)
                if self.end is not None:
                    return
                yield piece
        raise Cut("it ended in the middle")

    def _take(self, body: Mapping[str, Any]) -> str:
        match body["type"]:
            case "response.output_text.delta":
                return str(body["delta"])
            case "response.created":
                self.id = body["response"]["id"]
            case "response.completed" | "response.incomplete":
                self.end = _end_of(body["response"])
            case "response.failed":
                error = body["response"]["error"]
                # The API has few codes; the server's own is the type.
                raise error_named(error.get("type"), error["message"], param=error.get("param"))
            case "error":  # Its server can read no more of it; the response may go on.
                raise Cut(body["message"])
        return ""

    async def cancel(self) -> None:
        self._cancelled = True
        if self._sent:
            self.id = self.id or await self._find()
            await self._server.json(Call("POST", f"/v1/responses/{self.id}/cancel"))

    async def _find(self) -> str:
        """The id of what was asked for, from the server, which may be generating it already. Raises Cut."""
        try:
            async with self._server.events(self._first) as events:
                async for event in events:
                    body = json.loads(event.data)
                    if body["type"] == "response.created":
                        return str(body["response"]["id"])
        except DuplicateRequest as error:  # The key is ours alone: the server is just beginning it.
            raise Cut(error.message) from error
        raise Cut("it ended before it had begun")

    async def ack(self, characters: int) -> None:
        if self.id is not None:
            await self._server.json(Call("POST", f"/v1/responses/{self.id}/ack", json={"text_end": characters}))


def _end_of(response: Mapping[str, Any]) -> End:
    if response["status"] == "cancelled":
        reason = FinishReason.CANCELLED
    else:
        reason = FinishReason.STOP if response["status"] == "completed" else FinishReason.LENGTH
    return End(reason, _usage(response["usage"], "input", "output"))


def _usage(usage: Mapping[str, Any], read: str, said: str) -> Usage:
    details = usage.get(f"{read}_tokens_details") or {}
    return Usage(usage[f"{read}_tokens"], usage[f"{said}_tokens"], details.get("cached_tokens"))
