"""Writes to a SQLite store until it is killed, and says on stdout what has been committed.

python -m tests.chat.stores.crash_child FILE PREFIX SEED
"""

from __future__ import annotations

import asyncio
import random
import sys

from causerie.chat.store import Append, Store
from causerie.chat.stores.redis import RedisStore
from causerie.chat.stores.sqlite import SQLiteStore
from causerie.errors import StoreError
from tests.chat.stores.samples import conversation, ignore, record, said


async def main(reference: str, prefix: str, seed: int) -> None:
    chance = random.Random(seed)
    store: Store = RedisStore(reference, lease=1.0) if "://" in reference else SQLiteStore(reference)
    await store.open(prefix, ignore)
    written = {f"{prefix}{n}": 0 for n in range(4)}
    for id_ in written:
        await store.create_conversation(conversation(f"c_{id_}"), [])
        await store.begin(record(id_, conversation=f"c_{id_}"))
    while True:
        batch = []
        for id_ in chance.sample(list(written), chance.randint(1, len(written))):
            for _ in range(chance.randint(1, 3)):
                written[id_] += 1
                batch.append(Append(id_, written[id_], said(f"{written[id_]} " * chance.randint(1, 40))))
        try:
            await store.write(batch)
        except StoreError as error:
            print(f"refused: {error}", flush=True)
            return
        print(" ".join(f"{id_}={number}" for id_, number in written.items()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
