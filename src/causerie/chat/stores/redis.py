"""The store that several servers share: a Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson

from causerie.chat.event_codec import decode, decode_known, encode
from causerie.chat.log import Numbered
from causerie.chat.records import ConversationRecord, Item, ResponseRecord, interruption, outcome_of
from causerie.chat.store import MAX_CHAIN, Append, Page, Retention, Write
from causerie.chat.stores import redis_rows as rows
from causerie.chat.stores import refusals
from causerie.chat.stores.redis_calls import Calls, Lapsed, Refused, told_plainly
from causerie.chat.stores.redis_lease import Lease
from causerie.errors import StoreError

SCHEMA: Final = 1
_SWEEP = 64
_RUNNING = "causerie:running"
_EVENTS = "causerie:events:"
_SCHEMA = "causerie:schema"
_BLOCK = 5000


class RedisStore:
    """Every call is one script, which Redis runs as a whole. ``max_bytes`` bounds what we keep in it.

    A process holds a lease of ``lease`` seconds and renews it. When it is gone, whoever comes across one of its
    responses ends all of them. If it was only paused, what it still writes to them is refused.
    """

    shared = True

    def __init__(self, url: str, *, max_bytes: int | None = None, lease: float = 5.0) -> None:
        self._calls = Calls(url)
        self._bound = max_bytes or 0
        self._lease_seconds = lease
        self._lease: Lease | None = None
        self._writing = asyncio.Lock()

    async def open(self, runner: str, on_cancel: Callable[[str], None]) -> None:
        try:
            await self._see_that_it_fits()
            self._lease = Lease(self._calls, self._lease_seconds, on_cancel, self._end_all_of)
            await self._lease.start()
            await self._end_all_gone()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        lease, self._lease = self._lease, None
        with suppress(StoreError):  # A Redis that is gone needs no goodbye.
            if lease is not None:
                await lease.stop()
        await self._calls.close()

    async def begin(self, record: ResponseRecord) -> None:
        try:
            await self._begin(record)
        except Lapsed:
            await self._held().renew()
            await self._begin(record)

    async def _begin(self, record: ResponseRecord) -> None:
        await self._run(
            "begin",
            self._held().name,
            self._bound,
            record.id,
            record.owner,
            record.previous or "",
            record.conversation or "",
            record.output_id,
            rows.response_json(record),
            record.created,
            *rows.pairs(record.input if record.conversation else ()),
        )

    async def write(self, writes: Sequence[Write]) -> None:
        args: list[str | bytes | float] = []
        for each in writes:
            if isinstance(each, Append):
                args += ["a", each.response, each.number, encode(each.event)]
            else:
                end = each.outcome
                args += ["e", each.response, rows.outcome_json(end), end.ended, rows.item_json(end.item(""))]
        async with self._writing:  # In the order of the calls, whichever connections they get.
            await self._run("write", self._held().name, self._bound, *args)

    async def response(self, owner: str, id_: str) -> ResponseRecord | None:
        while True:
            found = await self._run("response", owner, id_)
            if not found:
                return None
            record, outcome, lease, left = found
            if outcome is not None or left > 0:
                return rows.to_response(id_, record, outcome)
            await self._end_all_of(lease.decode(), id_)

    async def events(self, owner: str, id_: str, after: int = 0) -> list[Numbered]:
        return (await self._events(owner, id_, after))[0]

    async def follow(self, owner: str, id_: str, after: int) -> list[Numbered]:
        while True:
            found, ended, left = await self._events(owner, id_, after)
            if found or ended:
                return found
            with told_plainly():
                # When its lease is over, its process has renewed it or is gone.
                streams = await self._calls.redis.xread({_EVENTS + id_: f"{after}-0"}, block=min(left + 1, _BLOCK))
            if streams:
                ((_, entries),) = streams
                return _numbered(id_, ((number, data[b"d"]) for number, data in entries))

    async def _events(self, owner: str, id_: str, after: int) -> tuple[list[Numbered], bool, int]:
        """The events, whether there will be more, and the milliseconds that its process's lease is good for."""
        while True:
            found = await self._run("events", owner, id_, after)
            if not found:
                return [], True, 0
            entries, ended, lease, left = found
            if ended or left > 0:
                return _numbered(id_, ((number, data) for number, (_, data) in entries)), bool(ended), left
            await self._end_all_of(lease.decode(), id_)

    async def chain(self, owner: str, id_: str) -> list[ResponseRecord]:
        while True:
            found = await self._run("chain", owner, id_, MAX_CHAIN)
            records = [rows.to_response(id_, record, outcome) for record, outcome, _ in found]
            gone = [(record.id, lease) for record, (*_, lease) in zip(records, found, strict=True) if lease is not None]
            if not gone:
                return records[::-1]
            for running, lease in gone:
                await self._end_all_of(lease.decode(), running)

    async def delete_response(self, owner: str, id_: str) -> bool:
        return bool((await self._run("delete_response", owner, id_))[0])

    async def ask_cancel(self, id_: str) -> None:
        with told_plainly():
            lease = await self._calls.redis.hget(_RUNNING, id_)
        if lease is not None and not await self._held().ask_cancel(lease.decode(), id_):
            await self._end_all_gone()
            with told_plainly():
                if await self._calls.redis.hexists(_RUNNING, id_):
                    raise StoreError("The server that generates this response was not reached. Try again in a moment.")

    async def create_conversation(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        await self._run(
            "create_conversation",
            self._bound,
            record.id,
            record.owner,
            rows.conversation_json(record),
            orjson.dumps(record.metadata),
            record.created,
            *rows.pairs(items),
        )

    async def conversation(self, owner: str, id_: str) -> ConversationRecord | None:
        found = await self._run("conversation", owner, id_)
        return rows.to_conversation(id_, *found) if found else None

    async def update_conversation(
        self,
        owner: str,
        id_: str,
        metadata: Mapping[str, str],
    ) -> ConversationRecord | None:
        found = await self._run("update_conversation", owner, id_, orjson.dumps(metadata))
        return rows.to_conversation(id_, *found) if found else None

    async def delete_conversation(self, owner: str, id_: str) -> bool:
        return bool((await self._run("delete_conversation", owner, id_))[0])

    async def items(
        self,
        owner: str,
        conversation: str,
        *,
        after: str | None = None,
        limit: int = MAX_CHAIN,
        newest_first: bool = False,
    ) -> Page:
        ids, data = await self._run("items", owner, conversation, after or "", limit, int(newest_first))
        found = [rows.to_item(*each) for each in zip(ids, data, strict=True)]
        return Page(found[:limit], len(found) > limit)

    async def item(self, owner: str, conversation: str, id_: str) -> Item | None:
        (data,) = await self._run("item", owner, conversation, id_)
        return None if data is None else rows.to_item(id_.encode(), data)

    async def add_items(self, owner: str, conversation: str, items: Sequence[Item]) -> None:
        await self._run("add_items", self._bound, owner, conversation, time.time(), *rows.pairs(items))

    async def delete_item(self, owner: str, conversation: str, id_: str) -> bool:
        return bool((await self._run("delete_item", owner, conversation, id_))[0])

    async def sweep(self, now: float, retention: Retention) -> int:
        await self._end_all_gone()
        before = -1e300 if retention.max_age is None else now - retention.max_age
        most = -1 if retention.max_bytes is None else retention.max_bytes
        removed, last = 0, _SWEEP
        while last == _SWEEP:
            (last,) = await self._run("sweep", before, most, _SWEEP)
            removed += last
        return removed

    async def _run(self, script: str, *args: str | bytes | float) -> list[Any]:
        self._held()
        try:
            try:
                return await self._calls.run(script, *args)
            except Refused as refused:
                if refused.kind != "busy":
                    raise
                await self._end_all_gone()  # Perhaps it is one of those.
                return await self._calls.run(script, *args)
        except Refused as refused:
            raise refused.error from None

    async def _end_all_gone(self) -> None:
        """End what any process that is gone was running."""
        with told_plainly():
            leases = {lease.decode() for lease in (await self._calls.redis.hgetall(_RUNNING)).values()}
        for lease in leases:
            if not await self._held().lives(lease):
                await self._end_all_of(lease)

    async def _end_all_of(self, lease: str, *also: str) -> None:
        with told_plainly():
            running = await self._calls.redis.hgetall(_RUNNING)
        ids = {id_.decode() for id_, its in running.items() if its.decode() == lease}
        for id_ in ids.union(also):
            while not await self._interrupt(id_, lease):
                pass

    async def _interrupt(self, id_: str, lease: str) -> bool:
        """False if it had written more by then than was read here."""
        with told_plainly():
            entries = await self._calls.redis.xrange(_EVENTS + id_)
        said = decode_known(data[b"d"] for _, data in entries)
        failed = interruption(said)
        outcome = outcome_of([*said, failed], time.time())
        assert outcome is not None
        (done,) = await self._calls.run(
            "interrupt",
            id_,
            lease,
            len(entries) + 1,
            encode(failed),
            rows.outcome_json(outcome),
            outcome.ended,
            rows.item_json(outcome.item("")),
        )
        return bool(done)

    def _held(self) -> Lease:
        if self._lease is None:
            raise refusals.closed()
        return self._lease

    async def _see_that_it_fits(self) -> None:
        with told_plainly():
            memory = await self._calls.redis.info("memory")
            await self._calls.redis.set(_SCHEMA, SCHEMA, nx=True)
            found = await self._calls.redis.get(_SCHEMA)
        if int(found) > SCHEMA:
            raise StoreError(
                f"The store was written by a newer causerie (schema {int(found)}; this one knows {SCHEMA}). "
                "Upgrade causerie, or name another database with --store."
            )
        if memory.get("maxmemory") and memory.get("maxmemory_policy") != "noeviction":
            raise StoreError(
                "This Redis throws keys away when its memory is full. Set its maxmemory-policy to noeviction, or name "
                "another one with --store."
            )


def _numbered(response: str, entries: Iterable[tuple[bytes, bytes]]) -> list[Numbered]:
    with refusals.reading("response", response):
        return [Numbered(int(number.partition(b"-")[0]), decode(data)) for number, data in entries]
