"""The real server on a free port, on the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from causerie.chat.archive import Archive
from causerie.chat.build import build_archive
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.web.app import create_app
from causerie.web.server import ChatServer, bind
from tests.support.http import close_all


@asynccontextmanager
async def running_server(service: ChatService, archive: Archive | None = None) -> AsyncIterator[str]:
    """Start ``service`` and serve it; gives the base URL, and ends everything afterwards.

    Without an ``archive`` it has one in memory.

    Clients that block must run in a thread (``asyncio.to_thread``): server and test share a loop.
    """
    archive = archive or build_archive(service, Settings(store=":memory:"))
    await archive.start()
    await service.start()
    server = ChatServer(create_app(service, archive), service.settings, bind(Settings(port=0)))
    try:
        await server.start()
        yield server.url
    finally:
        close_all()
        await server.stop()
        await service.stop()
        await archive.stop()
