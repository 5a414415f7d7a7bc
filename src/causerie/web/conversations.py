"""``/v1/conversations`` and their items."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from causerie.chat.archive import Archive
from causerie.chat.records import ConversationRecord
from causerie.chat.stores import refusals
from causerie.config import Settings
from causerie.errors import ConversationNotFound, ItemNotFound
from causerie.web.openai import PARSE_INLINE
from causerie.web.requests import owner_of, read_body, send_json
from causerie.wire.conversations import (
    conversation_object,
    deleted_object,
    parse_added,
    parse_conversation,
    parse_update,
)
from causerie.wire.fields import query_pairs, refuse_query
from causerie.wire.items import item_list, item_object
from causerie.wire.queries import parse_item_query, parse_list_query

T = TypeVar("T")

_PARAM = "conversation_id"
"""What errors call the conversation that the path names."""


class Conversations:
    """Each method is an ASGI application."""

    def __init__(self, archive: Archive, settings: Settings) -> None:
        self._archive = archive
        self._store = archive.store
        self._settings = settings

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope["query_string"])
        call = await self._parsed(parse_conversation, scope, receive)
        record = ConversationRecord(f"conv_{uuid.uuid4().hex}", owner_of(scope), time.time(), call.metadata)
        await self._archive.keep(lambda: self._store.create_conversation(record, call.items))
        await send_json(conversation_object(record), scope, receive, send)

    async def read(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope["query_string"])
        id_ = _conversation(scope)
        found = await self._store.conversation(owner_of(scope), id_)
        await send_json(conversation_object(_there(found, id_)), scope, receive, send)

    async def update(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope["query_string"])
        id_ = _conversation(scope)
        metadata = await self._parsed(parse_update, scope, receive)
        found = await self._archive.keep(lambda: self._store.update_conversation(owner_of(scope), id_, metadata))
        await send_json(conversation_object(_there(found, id_)), scope, receive, send)

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope["query_string"])
        id_ = _conversation(scope)
        if not await self._store.delete_conversation(owner_of(scope), id_):
            raise refusals.no_conversation(id_, _PARAM)
        await send_json(deleted_object(id_), scope, receive, send)

    async def items(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_list_query(query_pairs(scope["query_string"]))
        with _in_path():
            page = await self._store.items(
                owner_of(scope),
                _conversation(scope),
                after=query.after,
                limit=query.limit,
                newest_first=query.newest_first,
            )
        await send_json(item_list(page.items, page.has_more), scope, receive, send)

    async def add_items(self, scope: Scope, receive: Receive, send: Send) -> None:
        parse_item_query(query_pairs(scope["query_string"]))
        items = await self._parsed(parse_added, scope, receive)
        with _in_path():
            await self._archive.keep(lambda: self._store.add_items(owner_of(scope), _conversation(scope), items))
        await send_json(item_list(items, has_more=False), scope, receive, send)

    async def item(self, scope: Scope, receive: Receive, send: Send) -> None:
        parse_item_query(query_pairs(scope["query_string"]))
        owner, conversation = owner_of(scope), _conversation(scope)
        _there(await self._store.conversation(owner, conversation), conversation)
        id_ = scope["path_params"]["item"]
        found = await self._store.item(owner, conversation, id_)
        if found is None:
            raise _no_item(id_)
        await send_json(item_object(found), scope, receive, send)

    async def delete_item(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope["query_string"])
        owner, conversation = owner_of(scope), _conversation(scope)
        record = _there(await self._store.conversation(owner, conversation), conversation)
        id_ = scope["path_params"]["item"]
        if not await self._store.delete_item(owner, conversation, id_):
            raise _no_item(id_)
        await send_json(conversation_object(record), scope, receive, send)

    async def _parsed(self, parse: Callable[[bytes], T], scope: Scope, receive: Receive) -> T:
        body = await read_body(scope, receive, self._settings)
        return parse(body) if len(body) < PARSE_INLINE else await asyncio.to_thread(parse, body)


def _conversation(scope: Scope) -> str:
    id_: str = scope["path_params"]["id"]
    return id_


@contextmanager
def _in_path() -> Iterator[None]:
    """Around what the store refuses under the name of a body's field: here, the conversation is named by the path."""
    try:
        yield
    except ConversationNotFound as error:
        error.param = _PARAM
        raise


def _there(record: ConversationRecord | None, id_: str) -> ConversationRecord:
    if record is None:
        raise refusals.no_conversation(id_, _PARAM)
    return record


def _no_item(id_: str) -> ItemNotFound:
    return ItemNotFound(f"The conversation has no item {id_[:64]!r}.", param="item_id")
