"""Records and events to fill a store with."""

from __future__ import annotations

import time
from collections.abc import Sequence

from causerie.chat.records import ConversationRecord, Item, ResponseRecord, outcome_of
from causerie.chat.store import Append, End, Store, Write
from causerie.types import Event, Failed, Finished, FinishReason, Part, PrefillProgress, Started, TextDelta, Usage


def ignore(id_: str) -> None:
    raise AssertionError(f"nobody was to be asked to cancel {id_}")


def said(text: str, tokens: int = 1) -> TextDelta:
    return TextDelta((Part(0, text, tokens),))


def finished(reason: FinishReason = FinishReason.STOP) -> Finished:
    return Finished((reason,), Usage(3, 2, 1))


ANSWER: Sequence[Event] = (PrefillProgress(1, 3), Started(3), said("Hé "), said("là"), finished())


def user(id_: str, text: str = "Salut") -> Item:
    return Item(id_, "user", text)


def record(
    id_: str = "r1",
    *,
    owner: str = "ada",
    previous: str | None = None,
    conversation: str | None = None,
    background: bool = False,
    runner: str = "one",
    expires: float | None = None,
) -> ResponseRecord:
    return ResponseRecord(
        id_,
        owner,
        time.time(),
        "small",
        {"temperature": 0.5, "metadata": {"a": "b"}, "tools": []},
        (user(f"in_{id_}"),),
        f"out_{id_}",
        "Be brief.",
        previous,
        conversation,
        background,
        runner,
        expires=expires,
    )


def conversation(id_: str = "c1", *, owner: str = "ada") -> ConversationRecord:
    return ConversationRecord(id_, owner, time.time(), {"topic": "tea"})


def writes(id_: str, events: Sequence[Event], *, before: Sequence[Event] = ()) -> list[Write]:
    """``events``, which come behind those ``before``; with the end, if they hold it."""
    found: list[Write] = [Append(id_, number, event) for number, event in enumerate(events, len(before) + 1)]
    if events and isinstance(events[-1], Finished | Failed):
        outcome = outcome_of([*before, *events], time.time())
        assert outcome is not None
        found.append(End(id_, outcome))
    return found


async def answered(store: Store, made: ResponseRecord, events: Sequence[Event] = ANSWER) -> None:
    """Begin it and bring it to its end."""
    await store.begin(made)
    await store.write(writes(made.id, events))
