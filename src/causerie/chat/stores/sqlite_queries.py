"""What the SQLite store does with its connection. Each function runs inside a transaction of its caller's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from sqlite3 import Connection
from typing import Any

import orjson

from causerie.chat.event_codec import decode, decode_known, encode
from causerie.chat.log import Numbered
from causerie.chat.records import ConversationRecord, Item, Outcome, ResponseRecord, interruption, outcome_of
from causerie.chat.store import MAX_CHAIN, Append, End, EndedElsewhere, Page, Retention, Write
from causerie.chat.stores import refusals
from causerie.chat.stores.sqlite_rows import RESPONSE, outcome_row, response_row, to_conversation, to_response

_NEW_UNTIL = 31 / 32
"""Of the hard bound."""


def end_interrupted(db: Connection) -> None:
    """End what a process that is gone left running. The caller's process alone has the file."""
    for (id_,) in db.execute("SELECT id FROM response WHERE status IS NULL").fetchall():
        rows = _rows(db, id_, 0)
        said = decode_known(data for _, data in rows)
        failed = interruption(said)
        outcome = outcome_of([*said, failed], time.time())
        assert outcome is not None
        write(db, [Append(id_, len(rows) + 1, failed), End(id_, outcome)])


def begin(db: Connection, record: ResponseRecord, behind: str | None) -> None:
    _see_room(db)
    if _one(db, "SELECT 1 FROM response WHERE id = ?", record.id):
        raise refusals.taken(record.id)
    if record.conversation is not None:
        n = _idle_conversation(db, record.owner, record.conversation)
        last = _one(db, "SELECT id FROM item WHERE conversation = ? ORDER BY n DESC LIMIT 1", n)
        if behind is not None and behind != (last[0] if last else ""):
            raise refusals.busy(record.conversation)
        if _one(db, "SELECT 1 FROM item WHERE conversation = ? AND id = ?", n, record.output_id):
            raise refusals.taken(record.output_id)
        _add(db, n, record.input, record.created)
    db.execute(f"INSERT INTO response VALUES (NULL{', ?' * 12}{', NULL' * 6})", response_row(record))


def write(db: Connection, writes: Sequence[Write]) -> None:
    for each in writes:
        match each:
            case Append(id_, number, event):
                _append(db, id_, number, encode(event))
            case End(id_, outcome):
                _end(db, id_, outcome)


def _append(db: Connection, id_: str, number: int, data: bytes) -> None:
    done = db.execute(
        "INSERT INTO event SELECT n, ?1, ?2 FROM response WHERE id = ?3 AND status IS NULL "
        "AND ?1 = 1 + (SELECT coalesce(max(number), 0) FROM event WHERE response = n)",
        (number, data, id_),
    )
    if not done.rowcount and (found := _one(db, "SELECT status FROM response WHERE id = ?", id_)):
        if found[0] is not None:
            raise EndedElsewhere([id_])
        raise RuntimeError(f"event {number} of response {id_} does not follow the one before it")


def _end(db: Connection, id_: str, outcome: Outcome) -> None:
    found = _one(db, "SELECT conversation, owner, output_id FROM response WHERE id = ? AND status IS NULL", id_)
    if found is None:
        return
    conversation, owner, output_id = found
    db.execute(
        "UPDATE response SET status = ?, text = ?, usage = ?, ended = ?, reason = ?, error = ? WHERE id = ?",
        (*outcome_row(outcome), id_),
    )
    if conversation is not None and (item := outcome.item(output_id)):
        n = _conversation(db, owner, conversation)
        if n is not None:
            _add(db, n, [item], outcome.ended)


def response(db: Connection, owner: str, id_: str) -> ResponseRecord | None:
    row = _one(db, f"SELECT {RESPONSE} FROM response WHERE id = ? AND owner = ?", id_, owner)
    return to_response(row) if row else None


def events(db: Connection, owner: str, id_: str, after: int) -> list[Numbered]:
    if not _one(db, "SELECT 1 FROM response WHERE id = ? AND owner = ?", id_, owner):
        return []
    with refusals.reading("response", id_):
        return [Numbered(number, decode(data)) for number, data in _rows(db, id_, after)]


def _rows(db: Connection, id_: str, after: int) -> list[tuple[int, bytes]]:
    return db.execute(
        "SELECT number, data FROM event WHERE response = (SELECT n FROM response WHERE id = ?) AND number > ? "
        "ORDER BY number",
        (id_, after),
    ).fetchall()


def chain(db: Connection, owner: str, id_: str) -> list[ResponseRecord]:
    rows = db.execute(
        "WITH RECURSIVE line(n, previous, depth) AS ("
        " SELECT n, previous, 1 FROM response WHERE id = :id AND owner = :owner"
        " UNION ALL SELECT r.n, r.previous, depth + 1 FROM line JOIN response r ON r.id = line.previous"
        " WHERE r.owner = :owner AND depth < :most"
        f") SELECT {RESPONSE} FROM line JOIN response USING (n) ORDER BY depth DESC",
        {"id": id_, "owner": owner, "most": MAX_CHAIN},
    ).fetchall()
    records = [to_response(row) for row in rows]
    if not records:
        raise refusals.no_previous(id_)
    if records[0].previous is not None and len(records) < MAX_CHAIN:
        raise refusals.no_previous(records[0].previous)
    return records


def delete_response(db: Connection, owner: str, id_: str) -> bool:
    return db.execute("DELETE FROM response WHERE id = ? AND owner = ?", (id_, owner)).rowcount > 0


def create_conversation(db: Connection, record: ConversationRecord, items: Sequence[Item]) -> None:
    _see_room(db)
    if _one(db, "SELECT 1 FROM conversation WHERE id = ?", record.id):
        raise refusals.taken(record.id)
    values = (record.id, record.owner, record.created, record.created, orjson.dumps(record.metadata))
    n = db.execute("INSERT INTO conversation VALUES (NULL, ?, ?, ?, ?, ?)", values).lastrowid
    assert n is not None
    _add(db, n, items, record.created)


def conversation(db: Connection, owner: str, id_: str) -> ConversationRecord | None:
    row = _one(db, "SELECT id, owner, created, metadata FROM conversation WHERE id = ? AND owner = ?", id_, owner)
    return to_conversation(row) if row else None


def update_conversation(db: Connection, owner: str, id_: str, metadata: Mapping[str, str]) -> ConversationRecord | None:
    values = (orjson.dumps(metadata), id_, owner)
    db.execute("UPDATE conversation SET metadata = ? WHERE id = ? AND owner = ?", values)
    return conversation(db, owner, id_)


def delete_conversation(db: Connection, owner: str, id_: str) -> bool:
    return db.execute("DELETE FROM conversation WHERE id = ? AND owner = ?", (id_, owner)).rowcount > 0


def items(db: Connection, owner: str, conversation: str, after: str | None, limit: int, newest_first: bool) -> Page:
    n = _known_conversation(db, owner, conversation)
    compare, order = ("<", "DESC") if newest_first else (">", "ASC")
    values: list[Any] = [n]
    behind = ""
    if after is not None:
        found = _one(db, "SELECT n FROM item WHERE conversation = ? AND id = ?", n, after)
        if found is None:
            raise refusals.no_item(after)
        behind = f"AND n {compare} ?"
        values.append(found[0])
    rows = db.execute(
        f"SELECT id, role, text, status FROM item WHERE conversation = ? {behind} ORDER BY n {order} LIMIT ?",
        [*values, limit + 1],
    ).fetchall()
    return Page([Item(*row) for row in rows[:limit]], len(rows) > limit)


def item(db: Connection, owner: str, conversation: str, id_: str) -> Item | None:
    row = _one(
        db,
        "SELECT item.id, role, text, status FROM item JOIN conversation c ON c.n = item.conversation "
        "WHERE c.id = ? AND owner = ? AND item.id = ?",
        conversation,
        owner,
        id_,
    )
    return Item(*row) if row else None


def add_items(db: Connection, owner: str, conversation: str, items: Sequence[Item]) -> None:
    _see_room(db)
    _add(db, _idle_conversation(db, owner, conversation), items, time.time())


def delete_item(db: Connection, owner: str, conversation: str, id_: str) -> bool:
    n = _idle_conversation(db, owner, conversation)
    return db.execute("DELETE FROM item WHERE conversation = ? AND id = ?", (n, id_)).rowcount > 0


def sweep(db: Connection, now: float, retention: Retention, most: int) -> int:
    """At most ``most`` of them; fewer mean that there are no more."""
    for removed in count():
        oldest = _oldest(db) if removed < most else None
        if oldest is None:
            return removed
        table, n, when = oldest
        too_old = retention.max_age is not None and when < now - retention.max_age
        if not too_old and (retention.max_bytes is None or size(db) <= retention.max_bytes):
            return removed
        db.execute(f"DELETE FROM {table} WHERE n = ?", (n,))
    raise AssertionError


def _see_room(db: Connection) -> None:
    """Nothing new begins in the last part of a full store: what runs has it to come to its end."""
    pages, free, most = (pragma(db, name) for name in ("page_count", "freelist_count", "max_page_count"))
    if pages - free > most * _NEW_UNTIL:
        raise refusals.full()


def size(db: Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, page = (pragma(db, name) for name in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * page


def pragma(db: Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _oldest(db: Connection) -> tuple[str, int, float] | None:
    row: tuple[str, int, float] | None = db.execute(
        "SELECT 'response', n, ended FROM response WHERE status IS NOT NULL"
        " UNION ALL SELECT 'conversation', n, changed FROM conversation"
        " WHERE NOT EXISTS (SELECT 1 FROM response r WHERE r.conversation = conversation.id AND r.status IS NULL)"
        " ORDER BY 3 LIMIT 1"
    ).fetchone()
    return row


def _one(db: Connection, sql: str, *values: object) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = db.execute(sql, values).fetchone()
    return row


def _conversation(db: Connection, owner: str, id_: str) -> int | None:
    row = _one(db, "SELECT n FROM conversation WHERE id = ? AND owner = ?", id_, owner)
    return row[0] if row else None


def _known_conversation(db: Connection, owner: str, id_: str) -> int:
    n = _conversation(db, owner, id_)
    if n is None:
        raise refusals.no_conversation(id_)
    return n


def _idle_conversation(db: Connection, owner: str, id_: str) -> int:
    n = _known_conversation(db, owner, id_)
    if _one(db, "SELECT 1 FROM response WHERE conversation = ? AND status IS NULL", id_):
        raise refusals.busy(id_)
    return n


def _add(db: Connection, conversation: int, items: Iterable[Item], now: float) -> None:
    for item in items:
        if _one(db, "SELECT 1 FROM item WHERE conversation = ? AND id = ?", conversation, item.id):
            raise refusals.taken(item.id)
        values = (conversation, item.id, item.role, item.text, item.status)
        db.execute("INSERT INTO item VALUES (NULL, ?, ?, ?, ?, ?)", values)
    db.execute("UPDATE conversation SET changed = max(changed, ?) WHERE n = ?", (now, conversation))
