"""The store that several servers share: a Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

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

_SWEEP = 64
_RUNNING = "causerie:running"
_RESPONSE = "causerie:response:"
_EVENTS = "causerie:events:"
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
        self._expiring: set[str] = set()
        """What this process runs of responses that expire."""
        self._writing = asyncio.Lock()

    async def open(
        self,
        runner: str,
        on_cancel: Callable[[str], None],
        on_followed: Callable[[str], None] = lambda _: None,
        on_acknowledged: Callable[[str, int], None] = lambda _, __: None,
    ) -> None:
        self._on_cancel = on_cancel

        def acknowledged(message: str) -> None:
            id_, _, text_end = message.rpartition(" ")
            on_acknowledged(id_, int(text_end))

        told = {"cancel": on_cancel, "followed": on_followed, "acknowledged": acknowledged}
        try:
            await self._calls.see_that_it_fits()
            self._lease = Lease(self._calls, self._lease_seconds, told, self._end_all_of, self._keep_expiring)
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

    async def begin(self, record: ResponseRecord, behind: str | None = None) -> None:
        try:
            await self._begin(record, behind)
        except Lapsed:
            await self._held().renew()
            await self._begin(record, behind)

    async def _begin(self, record: ResponseRecord, behind: str | None) -> None:
        after: int | str = ""
        during: int | str = ""
        if record.expires is not None:
            # A follower takes a moment to see its end, and the lease's time to see that its process is gone.
            after = round(1000 * max(record.expires, self._lease_seconds))
            during = after + round(1000 * self._lease_seconds)
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
            after,
            during,
            "" if behind is None else f"={behind}",
            *rows.pairs(record.input if record.conversation else ()),
        )
        if record.expires is not None:
            self._expiring.add(record.id)

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
            found, ended, left = await self._events(owner, id_, after, follows=True)
            if found or ended:
                return found
            with told_plainly():
                # When its lease is over, its process has renewed it or is gone.
                streams = await self._calls.redis.xread({_EVENTS + id_: f"{after}-0"}, block=min(left + 1, _BLOCK))
            if streams:
                ((_, entries),) = streams
                return _numbered(id_, ((number, data[b"d"]) for number, data in entries))

    async def _events(
        self, owner: str, id_: str, after: int, *, follows: bool = False
    ) -> tuple[list[Numbered], bool, int]:
        """The events, whether there will be more, and the milliseconds that its process's lease is good for."""
        while True:
            found = await self._run("events", owner, id_, after, int(follows))
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
        await self._tell("cancel", id_, id_)

    async def tell_acknowledged(self, id_: str, text_end: int) -> bool:
        return await self._tell("acknowledged", id_, f"{id_} {text_end}")

    async def _tell(self, channel: str, id_: str, message: str) -> bool:
        """Tell the process that generates it; False if nobody does."""
        with told_plainly():
            found, outcome = await self._calls.redis.hmget(_RESPONSE + id_, "lease", "outcome")
        if found is None or outcome is not None:
            return False
        lease = found.decode()
        if await self._held().tell(channel, lease, message):
            return True
        if await self._held().lives(lease):
            raise StoreError("The server that generates this response was not reached. Try again in a moment.")
        await self._end_all_of(lease, id_)
        return False

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

    async def _keep_expiring(self) -> None:
        """Put off the expiry of what this process runs. What is gone, or was ended by others, is not to go on."""
        if self._expiring:
            asked = list(self._expiring)
            running = {id_.decode() for id_ in await self._run("keep", self._held().name, *asked)}
            for id_ in set(asked) - running:
                self._expiring.discard(id_)
                self._on_cancel(id_)

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


def _numbered(response: str, entries: Iterable[tuple[bytes, bytes]]) -> list[Numbered]:
    with refusals.reading("response", response):
        return [Numbered(int(number.partition(b"-")[0]), decode(data)) for number, data in entries]
