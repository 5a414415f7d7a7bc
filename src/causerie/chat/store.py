"""The contract of whatever keeps responses, conversations and event logs.

Every method is a coroutine of one event loop and never blocks it. What a method raises when the medium fails is a
``StoreError`` whose text names no path. Nothing is ever half written: each call is one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from causerie.chat.log import Numbered
from causerie.chat.records import ConversationRecord, Item, Outcome, ResponseRecord
from causerie.errors import StoreError
from causerie.types import Event

MAX_CHAIN = 4096
"""Responses in a row by ``previous`` that are followed, and items of a conversation that a prompt is made of."""


@dataclass(frozen=True, slots=True)
class Append:
    """An event of a running response. Numbers begin at 1 and have no gaps."""

    response: str
    number: int
    event: Event


@dataclass(frozen=True, slots=True)
class End:
    """A response has ended; comes with the ``Append`` of its terminal event.

    If it belongs to a conversation, its answer becomes that conversation's last item, and the next response may begin.
    """

    response: str
    outcome: Outcome


Write: TypeAlias = Append | End


class EndedElsewhere(StoreError):
    """Of responses that were written to: another process thought this one gone, and ended them."""

    def __init__(self, responses: Sequence[str]) -> None:
        super().__init__("This answer was ended in the store while its server did not respond.")
        self.responses = responses


@dataclass(frozen=True, slots=True)
class Retention:
    """What is removed by ``sweep``: ended responses, and conversations that nothing was added to, oldest first."""

    max_age: float | None
    """Seconds."""
    max_bytes: int | None
    """Size of the whole store."""


class Page(NamedTuple):
    items: list[Item]
    has_more: bool


class Store(Protocol):
    """Keeps records under their ids. ``owner`` is checked by every method that takes it: another's are not found."""

    @property
    def shared(self) -> bool:
        """Whether several server processes may use it at once."""
        ...

    async def open(
        self,
        runner: str,
        on_cancel: Callable[[str], None],
        on_followed: Callable[[str], None] = lambda _: None,
        on_acknowledged: Callable[[str, int], None] = lambda _, __: None,
    ) -> None:
        """Make or migrate the schema, and end as failed (``Interrupted``, the text that was committed kept) what a
        process that is gone left running.

        ``runner`` names this process. ``on_cancel`` is called with the id of a response that this process generates
        and that another one was asked to cancel; ``on_followed``, now and then, with the id of one that another process
        follows; ``on_acknowledged`` with what another one's ``tell_acknowledged`` was given. Raises StoreError for a
        store that cannot be opened, is locked by another process, corrupt or of a newer schema.
        """
        ...

    async def close(self) -> None:
        """Safe to call twice."""
        ...

    async def begin(self, record: ResponseRecord, behind: str | None = None) -> None:
        """Keep a new response; its input becomes items of its conversation, if it has one.

        ``behind`` is the id of the item that the conversation ended with when it was read, "" where it had none:
        somebody else may have added to it since.

        One that ``expires`` has none, and does not count to the store's size; only where the store is ``shared``. It
        is gone that many seconds after its end (a moment more, so that its followers see that), and soon after its
        process is; when it is gone, or ended by others, while its process runs it, that one's ``on_cancel`` is called.

        Raises DuplicateRequest for an id that is taken, ConversationNotFound, ConversationBusy while another
        response of the conversation runs and where it does not end with ``behind``, StoreFull.
        """
        ...

    async def write(self, writes: Sequence[Write]) -> None:
        """All of them or none; returns once they are committed. Those of a deleted response change nothing.

        Raises EndedElsewhere, which names the responses without which the others may be written.
        """
        ...

    async def response(self, owner: str, id_: str) -> ResponseRecord | None: ...

    async def events(self, owner: str, id_: str, after: int = 0) -> list[Numbered]:
        """The committed events above ``after``, in order and unmerged; none of a response that is not there."""
        ...

    async def follow(self, owner: str, id_: str, after: int) -> list[Numbered]:
        """Like ``events``, but waits until there is one, for a response that another process generates.

        Ends with the terminal event whatever happens to that process. Empty only after the terminal event, or when the
        response was deleted. Only where the store is ``shared``.
        """
        ...

    async def chain(self, owner: str, id_: str) -> list[ResponseRecord]:
        """A response and those that it continues, oldest first. Raises PreviousResponseNotFound if one is missing."""
        ...

    async def delete_response(self, owner: str, id_: str) -> bool:
        """Whether it was there. A running one goes too; what is still written to it is dropped."""
        ...

    async def ask_cancel(self, id_: str) -> None:
        """Tell the process that generates it; only where the store is ``shared``."""
        ...

    async def tell_acknowledged(self, id_: str, text_end: int) -> bool:
        """Tell the process that generates it how many characters were shown; False if nobody generates it any more.

        What the same process tells of a response arrives in the order in which it is told. Only where the store is
        ``shared``.
        """
        ...

    async def create_conversation(self, record: ConversationRecord, items: Sequence[Item]) -> None: ...

    async def conversation(self, owner: str, id_: str) -> ConversationRecord | None: ...

    async def update_conversation(
        self,
        owner: str,
        id_: str,
        metadata: Mapping[str, str],
    ) -> ConversationRecord | None: ...

    async def delete_conversation(self, owner: str, id_: str) -> bool:
        """Its items go with it; the responses that were made in it stay."""
        ...

    async def items(
        self,
        owner: str,
        conversation: str,
        *,
        after: str | None = None,
        limit: int = MAX_CHAIN,
        newest_first: bool = False,
    ) -> Page:
        """Items behind the one called ``after``. Raises ConversationNotFound; ItemNotFound for ``after``."""
        ...

    async def item(self, owner: str, conversation: str, id_: str) -> Item | None: ...

    async def add_items(self, owner: str, conversation: str, items: Sequence[Item]) -> None:
        """Behind the others. Raises ConversationNotFound, ConversationBusy, DuplicateRequest for a taken id."""
        ...

    async def delete_item(self, owner: str, conversation: str, id_: str) -> bool:
        """Whether it was there. Raises ConversationNotFound, ConversationBusy."""
        ...

    async def sweep(self, now: float, retention: Retention) -> int:
        """Remove what ``retention`` says; returns how many responses and conversations went."""
        ...
