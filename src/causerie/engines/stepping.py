"""The thread that an engine with a ``step`` runs on: an inbox of commands, then one step, then one delivery."""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from causerie.engines.base import Deliver, EndReason, EngineInfo, EngineStats, Update
from causerie.types import SamplingParams

logger = logging.getLogger("causerie.engine")


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate after ``prompt``, or only read it where ``sampling`` is None."""

    sequence: int
    prompt: Sequence[int]
    sampling: SamplingParams | None
    gently: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    sequence: int


Command: TypeAlias = Submit | Cancel


LOST = "The engine failed, and what it was generating is lost. Try again."


class SteppingEngine(ABC):
    """An ``Engine`` whose model advances all its sequences in one blocking ``_step``.

    Subclasses implement the five hooks below; all of them run on the engine's thread. Between steps with
    nothing to do the thread sleeps on a condition.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inbox: list[Command] = []
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._steps = 0
        self._failure: BaseException | None = None
        self._broken = False

    @property
    @abstractmethod
    def info(self) -> EngineInfo: ...

    @abstractmethod
    def _open(self) -> None:
        """Load whatever is needed; may raise ModelUnavailable."""

    @abstractmethod
    def _apply(self, command: Command) -> Iterable[Update]:
        """Take a command in; updates that need no step may be returned at once."""

    @abstractmethod
    def _busy(self) -> bool:
        """Whether a step would do anything."""

    @abstractmethod
    def _step(self, updates: list[Update]) -> None:
        """Advance every sequence once, and add what each gained to ``updates``.

        Where a hook raises, what was added is delivered, all that has not ended ends as ERROR, and ``_open`` comes
        before the next step.
        """

    @abstractmethod
    def _abandon(self) -> list[int]:
        """Forget every sequence that has not ended and return their numbers."""

    def _close(self) -> None:
        """Give back what ``_open`` took. Safe to call twice."""
        return

    @abstractmethod
    def stats(self) -> EngineStats: ...

    def start(self, deliver: Deliver) -> None:
        """See ``Engine.start``. The model is loaded on the engine's thread, which this waits for."""
        opened = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(deliver, opened), name=f"causerie-{self.info.name}", daemon=True
        )
        self._thread.start()
        opened.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def submit(self, sequence: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self._post(Submit(sequence, prompt, sampling))

    def prefill(self, sequence: int, prompt: Sequence[int], *, gently: bool = False) -> None:
        self._post(Submit(sequence, prompt, None, gently))

    def cancel(self, sequence: int) -> None:
        self._post(Cancel(sequence))

    def stop(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _post(self, command: Command) -> None:
        with self._condition:
            self._inbox.append(command)
            self._condition.notify()

    def _run(self, deliver: Deliver, opened: threading.Event) -> None:
        try:
            self._open()
        except BaseException as error:
            self._failure = error
            return
        finally:
            opened.set()
        try:
            while (commands := self._wait()) is not None:
                updates = self._advance(commands)
                if updates:
                    deliver(updates)
            left = self._abandon() + [command.sequence for command in self._inbox if isinstance(command, Submit)]
            if left:
                deliver([Update(sequence, ended=EndReason.CANCELLED) for sequence in left])
        finally:
            self._close()

    def _wait(self) -> list[Command] | None:
        """The commands that came since, as soon as there is anything to do; None when stopping."""
        with self._condition:
            while not (self._inbox or self._stopping or self._busy()):
                self._condition.wait()
            if self._stopping:
                return None
            commands, self._inbox = self._inbox, []
            return commands

    def _advance(self, commands: list[Command]) -> list[Update]:
        updates: list[Update] = []
        try:
            if self._broken:
                self._open()
                self._broken = False
            while commands:
                updates.extend(self._apply(commands[0]))
                commands.pop(0)
            if self._busy():
                self._step(updates)
                self._steps += 1
        except Exception:
            logger.exception("the engine failed; its sequences end, and it is opened anew with the next one")
            unseen = [command.sequence for command in commands if isinstance(command, Submit)]
            told = {update.sequence for update in updates if update.ended is not None}
            lost = [number for number in dict.fromkeys([*self._abandon(), *unseen]) if number not in told]
            updates.extend(Update(sequence, ended=EndReason.ERROR, detail=LOST) for sequence in lost)
            with contextlib.suppress(Exception):
                self._close()
            self._broken = True
        return updates
