"""A ``Talker`` over the network: any server with the OpenAI API, and causerie's own better."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx2

from causerie.cli.dialogue import Dialogue, PlainDialogue
from causerie.cli.talk import AnyPrompt, proper_end
from causerie.client import AsyncClient
from causerie.errors import CauserieError
from causerie.types import FinishReason, TextPrompt

KEY_VARIABLE = "CAUSERIE_API_KEY"
"""A variable and no flag: the arguments of a command are seen by everybody on the machine."""

_NO_STREAM = "The server's answer is no OpenAI stream. Is it a chat server?"


class RemoteError(CauserieError):
    """What a named server refused, or broke off, or that it cannot be reached. ``code`` is the server's own, if any."""

    code = "remote_error"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.code


class RemoteTalker:
    """A server with the OpenAI API answers. Conversations with one of causerie's are its own to keep."""

    def __init__(self, server: str, model: str, sampling: Mapping[str, Any], *, key: str | None = None) -> None:
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise RemoteError(f"{KEY_VARIABLE} is no API key: it is empty, or holds a blank or something unusual.")
        self._key = key
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.finish_reason: FinishReason | None = None
        self.dropped_messages = 0
        url = server if "://" in server else "http://" + server
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._model = model
        self._sampling = sampling
        self._client: httpx2.AsyncClient | None = None

    @property
    def name(self) -> str:
        return self._url.removesuffix("/v1")

    async def start(self) -> None:
        # A long prompt on a slow machine is silent for minutes where the server sends no heartbeats.
        self._client = httpx2.AsyncClient(headers=self._headers, timeout=httpx2.Timeout(300.0, connect=10.0))

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def dialogue(self, system: str | None) -> Dialogue:
        if await self._is_causerie():
            return ServedDialogue(AsyncClient(self.name, api_key=self._key), system, self._sampling)
        return PlainDialogue(self, system)

    async def answer(self, prompt: AnyPrompt) -> AsyncGenerator[str, None]:
        self.finish_reason, self.dropped_messages = None, 0
        try:
            async with aclosing(self._stream(prompt)) as pieces:
                async for piece in pieces:
                    yield piece
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise RemoteError(f"{self.name} is no server's address: {error}") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise RemoteError(
                f"No server answers at {self.name}. Start one with 'causerie serve', or run the model here by "
                "leaving out --server (CAUSERIE_SERVER)."
            ) from None
        except UnicodeEncodeError:
            raise RemoteError("The text is not valid Unicode.") from None
        except httpx2.SSEError:
            raise RemoteError(_NO_STREAM) from None
        except httpx2.TransportError as error:
            raise RemoteError(f"The connection to {self.name} broke: {str(error) or type(error).__name__}.") from None
        if self.finish_reason is None:
            raise RemoteError(f"{self.name} ended the answer before its end; what came is not all of it.")

    async def _is_causerie(self) -> bool:
        """Whether the model is served by causerie; where nothing can be learnt, the first turn will tell why."""
        assert self._client is not None, "start comes first"
        try:
            response = await self._client.get(self._url + "/models")
            models = response.json()["data"]
            return any(model["owned_by"] == "causerie" and self._model in {"default", model["id"]} for model in models)
        except (httpx2.HTTPError, httpx2.InvalidURL, LookupError, TypeError, ValueError):
            return False

    async def _stream(self, prompt: AnyPrompt) -> AsyncGenerator[str, None]:
        assert self._client is not None, "start comes first"
        path, body = self._request(prompt)
        async with self._client.stream("POST", self._url + path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise _refusal(response)
            reason = None
            async for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    self.finish_reason = reason
                    return
                text, ended = _read_chunk(event.data)
                reason = reason if ended is None else proper_end(ended)
                if text:
                    yield text

    def _request(self, prompt: AnyPrompt) -> tuple[str, dict[str, Any]]:
        common = {"model": self._model, "stream": True, **self._sampling}
        if isinstance(prompt, TextPrompt):
            return "/completions", {**common, "prompt": prompt.text}
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        return "/chat/completions", {**common, "messages": messages}


class ServedDialogue:
    """One of causerie's servers keeps the conversation, and reads a turn while it is typed.

    An answer survives its connection. The oldest turns are left out where they no longer fit, and nobody says so.
    """

    dropped_messages = 0

    def __init__(self, client: AsyncClient, system: str | None, sampling: Mapping[str, Any]) -> None:
        self.finish_reason: FinishReason | None = None
        self._client = client
        self._chat = client.chat(instructions=system, **sampling)

    def show(self, text: str) -> None:
        self._chat.truncate(0)
        self._chat.type(text)

    async def say(self, text: str) -> AsyncGenerator[str, None]:
        self.finish_reason = None
        try:
            answer = await self._chat.send(text)
        except UnicodeEncodeError:
            raise RemoteError("The text is not valid Unicode.") from None
        async with answer:
            async for piece in answer:
                yield piece
        self.finish_reason = answer.finish_reason

    async def aclose(self) -> None:
        await self._client.aclose()


def _read_chunk(data: str) -> tuple[str, str | None]:
    """A stream chunk's text and finish reason. Raises RemoteError if it tells of an error, or is none at all."""
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            message, code = _explanation(chunk)
            raise RemoteError(f"The server broke the answer off: {message}", code)
        if not chunk["choices"]:
            return "", None
        choice = chunk["choices"][0]
        text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
        return text or "", choice.get("finish_reason")
    except (AttributeError, LookupError, TypeError, ValueError):
        raise RemoteError(_NO_STREAM) from None


def _refusal(response: httpx2.Response) -> RemoteError:
    try:
        message, code = _explanation(response.json())
    except ValueError:
        message, code = _explanation(None)
    if response.status_code == 401:
        sent = "authorization" in response.request.headers
        message += f" {KEY_VARIABLE} {'holds another one' if sent else 'is where yours belongs'}."
    return RemoteError(f"The server refused ({response.status_code}): {message}", code)


def _explanation(body: Any) -> tuple[str, str | None]:
    """An error object's message and code."""
    error = body.get("error") if isinstance(body, dict) else None
    described = error if isinstance(error, dict) else {"message": error}
    return str(described.get("message") or "it gave no reason. Is it a chat server?"), described.get("code")
