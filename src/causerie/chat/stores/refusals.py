"""What is said when something stored is refused: one wording, whatever the medium, and whoever sees it first."""

from __future__ import annotations

from causerie.errors import (
    ConversationBusy,
    ConversationNotFound,
    DuplicateRequest,
    ItemNotFound,
    PreviousResponseNotFound,
    StoreError,
    StoreFull,
)


def taken(id_: str) -> DuplicateRequest:
    return DuplicateRequest(f"The id {id_!r} is taken. Choose another one.")


def no_conversation(id_: str) -> ConversationNotFound:
    return ConversationNotFound(f"No conversation with the id {id_!r} was found.", param="conversation")


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


def closed() -> StoreError:
    return StoreError("The store is not open.")


def full() -> StoreFull:
    return StoreFull("The store is full. Delete responses, free disk space, or raise --store-max-gib.")
