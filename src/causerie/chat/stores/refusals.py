"""What is said when something stored is refused: one wording, whatever the medium, and whoever sees it first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from causerie.chat.event_codec import MALFORMED
from causerie.errors import (
    ConversationBusy,
    ConversationNotFound,
    DuplicateRequest,
    ItemNotFound,
    PreviousResponseNotFound,
    RecordUnreadable,
    StoreError,
    StoreFull,
)


def taken(id_: str) -> DuplicateRequest:
    return DuplicateRequest(f"The id {id_!r} is taken. Choose another one.")


def no_conversation(id_: str, param: str = "conversation") -> ConversationNotFound:
    return ConversationNotFound(f"No conversation with the id {id_[:64]!r} was found.", param=param)


def busy(id_: str) -> ConversationBusy:
    return ConversationBusy(
        f"Another response of the conversation {id_!r} is being generated. Wait for its end, or cancel it.",
        param="conversation",
    )


def no_item(id_: str) -> ItemNotFound:
    return ItemNotFound(f"No item with the id {id_!r} was found in this conversation.", param="after")


def no_previous(id_: str) -> PreviousResponseNotFound:
    return PreviousResponseNotFound(
        f"No response with the id {id_!r} was found; it may have been deleted. Send the conversation as input.",
        param="previous_response_id",
    )


@contextmanager
def reading(what: str, id_: str) -> Iterator[None]:
    """Around what makes a value of stored bytes: ``what`` is the record's kind. Raises RecordUnreadable."""
    try:
        yield
    except MALFORMED as error:
        raise RecordUnreadable(
            f"The {what} {id_!r} is damaged in the store, or was written by another version of causerie. Upgrade, or "
            "delete it."
        ) from error


def closed() -> StoreError:
    return StoreError("The store is not open.")


def full() -> StoreFull:
    return StoreFull("The store is full. Delete responses, free disk space, or raise --store-max-gib.")
