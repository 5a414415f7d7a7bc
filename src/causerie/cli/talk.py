"""Who answers a command: a model in this process, or a server that was named. Both are a ``Talker``."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from causerie.cli.options import (
    MODEL_SETTINGS,
    Command,
    flag_of,
    load,
    sampling_options,
    server_option,
    setting_options,
)
from causerie.config import Settings
from causerie.errors import Cancelled, CauserieError
from causerie.types import (
    ChatPrompt,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
)

if TYPE_CHECKING:
    import httpx2

    from causerie.chat.service import ChatService

AnyPrompt = ChatPrompt | TextPrompt


class RemoteError(CauserieError):
    """What a named server refused, or broke off, or that it cannot be reached. ``code`` is the server's own, if any."""

    code = "remote_error"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.code


class Talker(Protocol):
    """Answers prompts, one at a time."""

    finish_reason: FinishReason | None
    """Why the last answer ended: STOP or LENGTH; None until it has."""
    dropped_messages: int
    """How many of the oldest messages the last answer was given without, because they did not fit."""

    @property
    def name(self) -> str:
        """What answers, for people."""
        ...

    async def start(self) -> None: ...

    def answer(self, prompt: AnyPrompt) -> AsyncGenerator[str, None]:
        """The answer's text as it comes. Raises CauserieError if it was refused, or did not reach its end.

        Close it (``aclosing``) to stop the answer where it is.
        """
        ...

    async def stop(self) -> None: ...


@contextmanager
def talking(talker: Talker) -> Iterator[asyncio.Runner]:
    """A started talker, and the runner for its answers: Ctrl-C in ``run`` cancels and raises KeyboardInterrupt.

    Interrupted while it starts, it is left as it is: loading a model cannot be stopped, only abandoned.
    """
    runner = asyncio.Runner()
    runner.run(talker.start())
    try:
        yield runner
    finally:
        runner.run(talker.stop())
        runner.close()


def talker_options(command: Command) -> Command:
    """Adds the options that say who answers and how; the command gets ``open_talker``, which takes no arguments."""

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        sampling: dict[str, Any],
        server: str | None,
        flags: dict[str, Any],
        config: Path | None,
        **kwargs: Any,
    ) -> Any:
        def open_talker() -> Talker:
            settings = load(flags, config)
            if server is None:
                return local_talker(settings, sampling)
            for name in sorted(set(flags) - {"model", "max_tokens"}):
                raise click.UsageError(f"{flag_of(name)} is the server's to set; leave it out with --server.")
            limit = {"max_tokens": settings.max_tokens} if "max_tokens" in flags else {}
            return RemoteTalker(server, settings.model, {**sampling, **limit})

        return command(*args, open_talker=open_talker, **kwargs)

    return sampling_options(server_option(setting_options(*MODEL_SETTINGS)(wrapper)))


def local_talker(settings: Settings, sampling: Mapping[str, Any]) -> LocalTalker:
    """The settings' model, in this process. Fetches it if it is not here: minutes, at first.

    ``sampling`` has only what was given, by the names of ``SamplingParams``.
    """
    from causerie.chat.build import build_service
    from causerie.models.progress import StderrProgress

    service = build_service(settings, progress=StderrProgress())
    return LocalTalker(service, SamplingParams(max_tokens=service.default_max_tokens, **sampling))


class LocalTalker:
    """The model runs in this process."""

    def __init__(self, service: ChatService, sampling: SamplingParams) -> None:
        self.finish_reason: FinishReason | None = None
        self.dropped_messages = 0
        self._service = service
        self._sampling = sampling

    @property
    def name(self) -> str:
        return self._service.model_name

    async def start(self) -> None:
        await self._service.start()

    async def stop(self) -> None:
        await self._service.stop()

    async def answer(self, prompt: AnyPrompt) -> AsyncGenerator[str, None]:
        self.finish_reason, self.dropped_messages = None, 0
        log = await self._service.create(GenerationRequest(uuid.uuid4().hex, prompt, self._sampling))
        async with log.reader() as reader:
            async for _, event in reader:
                match event:
                    case Started(dropped_messages=dropped):
                        self.dropped_messages = dropped
                    case TextDelta(parts):
                        if text := "".join(part.text for part in parts):
                            yield text
                    case Failed(error):
                        raise error
                    case Finished(reasons):
                        self.finish_reason = _proper_end(reasons[0])


class RemoteTalker:
    """A server with the OpenAI API answers."""

    def __init__(self, server: str, model: str, sampling: Mapping[str, Any]) -> None:
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
        import httpx2

        # A long prompt on a slow machine is silent for minutes where the server sends no heartbeats.
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(300.0, connect=10.0))

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def answer(self, prompt: AnyPrompt) -> AsyncGenerator[str, None]:
        import httpx2

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
            raise RemoteError(f"The connection to {self.name} broke: {error or type(error).__name__}.") from None
        if self.finish_reason is None:
            raise RemoteError(f"{self.name} ended the answer before its end; what came is not all of it.")

    async def _stream(self, prompt: AnyPrompt) -> AsyncGenerator[str, None]:
        import httpx2

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
                reason = reason if ended is None else _proper_end(ended)
                if text:
                    yield text

    def _request(self, prompt: AnyPrompt) -> tuple[str, dict[str, Any]]:
        common = {"model": self._model, "stream": True, **self._sampling}
        if isinstance(prompt, TextPrompt):
            return "/completions", {**common, "prompt": prompt.text}
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        return "/chat/completions", {**common, "messages": messages}


_NO_STREAM = "The server's answer is no OpenAI stream. Is it a chat server?"


def _proper_end(reason: str) -> FinishReason:
    if reason in {FinishReason.CANCELLED, FinishReason.ERROR}:
        raise Cancelled("The answer was stopped before its end.")
    return FinishReason.LENGTH if reason == FinishReason.LENGTH else FinishReason.STOP


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
    return RemoteError(f"The server refused ({response.status_code}): {message}", code)


def _explanation(body: Any) -> tuple[str, str | None]:
    """An error object's message and code."""
    error = body.get("error") if isinstance(body, dict) else None
    described = error if isinstance(error, dict) else {"message": error}
    return str(described.get("message") or "it gave no reason. Is it a chat server?"), described.get("code")
