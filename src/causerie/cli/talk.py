"""Who answers a command: a model in this process, or a server that was named. Both are a ``Talker``."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from causerie.cli.dialogue import Dialogue, LocalDialogue
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
from causerie.errors import Cancelled
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
    from causerie.chat.service import ChatService

AnyPrompt = ChatPrompt | TextPrompt


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

    async def dialogue(self, system: str | None) -> Dialogue:
        """A new conversation. ``system``: instructions to the model, before it."""
        ...

    async def stop(self) -> None: ...


@contextmanager
def talking(talker: Talker) -> Iterator[asyncio.Runner]:
    """A started talker, and the runner for its answers: Ctrl-C in ``run`` cancels and raises KeyboardInterrupt.

    Interrupted while it starts, it is left as it is: loading a model cannot be stopped, only abandoned.
    """
    runner = asyncio.Runner()
    try:
        runner.run(talker.start())
    except Exception:
        runner.close()
        raise
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
            theirs = sorted(set(flags) - {"model", "max_tokens"})
            if theirs:
                raise click.UsageError(f"{flag_of(theirs[0])} is the server's to set; leave it out with --server.")
            from causerie.cli.remote import KEY_VARIABLE, RemoteTalker

            limit = {"max_tokens": settings.max_tokens} if "max_tokens" in flags else {}
            return RemoteTalker(server, settings.model, {**sampling, **limit}, key=os.environ.get(KEY_VARIABLE))

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

    async def dialogue(self, system: str | None) -> Dialogue:
        return LocalDialogue(self, self._service, system)

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
                        self.finish_reason = proper_end(reasons[0])


def proper_end(reason: str) -> FinishReason:
    """STOP or LENGTH for a finish reason. Raises Cancelled where it is none of a whole answer."""
    if reason in {FinishReason.CANCELLED, FinishReason.ERROR}:
        raise Cancelled("The answer was stopped before its end.")
    return FinishReason.LENGTH if reason == FinishReason.LENGTH else FinishReason.STOP
