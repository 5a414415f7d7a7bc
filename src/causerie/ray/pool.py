"""How the engines are reached: calls of Ray Serve to one replica or another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from causerie.ray.replica import Gain
from causerie.types import SamplingParams

T_co = TypeVar("T_co", covariant=True)


class Stream(Protocol, Generic[T_co]):
    """What Ray Serve returns for a streaming call."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def cancel(self) -> None: ...


class Pool(Protocol):
    """How to reach the engines."""

    def generate(
        self, preferred: str, channel: int, key: int, prompt: Sequence[int], sampling: SamplingParams
    ) -> Stream[str]:
        """Run a sequence, at the replica named if it has room. Says which replica has it, and ends when it is over."""
        ...

    def prefill(self, preferred: str, prompt: Sequence[int], *, gently: bool) -> Stream[tuple[str, int | None]]:
        """Read it ahead, at the replica named if it is there. Says which replica has, and how much it had cached."""
        ...

    def gains(self, replica: str, channel: int) -> Stream[list[Gain]]:
        """The channel of this number from this replica and no other; begins with an empty list."""
        ...


def pool_of(handle: Any, caller: str) -> Pool:
    """A Ray Serve handle of the engine deployment as a ``Pool``; ``caller`` is this process's name among actors."""
    return _HandlePool(handle, caller)


class _HandlePool:
    def __init__(self, handle: Any, caller: str) -> None:
        # By gRPC, from process to process: what a task of Ray's returns is an object of Ray's, and costs a third more.
        self._handle = handle.options(
            stream=True, _by_reference=False, request_serialization="pickle", response_serialization="pickle"
        )
        self._caller = caller

    def generate(
        self, preferred: str, channel: int, key: int, prompt: Sequence[int], sampling: SamplingParams
    ) -> Stream[str]:
        stream: Stream[str] = self._handle.options(session_id=preferred).generate.remote(
            self._caller, channel, key, list(prompt), sampling
        )
        return stream

    def prefill(self, preferred: str, prompt: Sequence[int], *, gently: bool) -> Stream[tuple[str, int | None]]:
        handle = self._handle.options(session_id=preferred)
        stream: Stream[tuple[str, int | None]] = handle.prefill.remote(list(prompt), gently)
        return stream

    def gains(self, replica: str, channel: int) -> Stream[list[Gain]]:
        stream: Stream[list[Gain]] = self._handle.options(session_id=replica).gains.remote(self._caller, channel)
        return stream
