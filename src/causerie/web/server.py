"""The server process: one socket, one event loop, and a shutdown that loses nobody's answer without a word.

The first SIGTERM or Ctrl-C turns readiness off and lets running answers finish until the deadline; then the
process ends with status 0. A second one ends it at once, with 128 + the signal's number, and so does the first
one while the model is still being loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from causerie.chat.archive import Archive
from causerie.chat.build import build_archive
from causerie.chat.garbage import keep_for_good
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.errors import ConfigError
from causerie.web.access import Access
from causerie.web.app import App, create_app
from causerie.web.protocols import HttpProtocol, SocketProtocol

BACKLOG = 2048
KEEP_ALIVE = 5
"""Seconds that an idle HTTP connection stays open."""
PING_INTERVAL = 20.0
PING_TIMEOUT = 20.0
"""Seconds between WebSocket pings, and for the pong to each."""
LAST_WRITES = 3.0
"""Seconds, once everything is said, for clients to take it before their connections are cut."""


def bind(settings: Settings) -> socket.socket:
    """A listening socket for ``host`` and ``port``. Raises ConfigError that says what to do about it.

    Without keys it listens to this machine alone, unless the settings allow the others.
    """
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        _check_audience(settings, str(address[0]))
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host!r}: {error.strerror}. Try --host 127.0.0.1.", param="host") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Now, and not once the model is loaded: only a listening socket keeps a second server out.
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _bind_error(error, host, port) from None
    sock.setblocking(False)
    return sock


def _check_audience(settings: Settings, address: str) -> None:
    if not (settings.has_keys or settings.allow_anonymous or ipaddress.ip_address(address).is_loopback):
        raise ConfigError(
            f"At {settings.host} others than this machine could use the server, for it asks for no key. Make one, with "
            "'causerie keys add NAME --api-keys-file FILE', and give --api-keys-file FILE; or let everybody in, with "
            "--allow-anonymous.",
            param="host",
        )


def _bind_error(error: OSError, host: str, port: int) -> ConfigError:
    other = port + 1 if 0 < port < 65535 else 8000
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"Port {port} is in use. Stop what uses it, or choose another one: --port {other}", param="port"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"Port {port} needs more rights than this process has. Try --port 8000.", param="port")
    return ConfigError(f"Cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}.", param="host")


def url_of(sock: socket.socket) -> str:
    """The base URL that a client on this machine connects to."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class ChatServer:
    """uvicorn on a listening socket, on the running event loop. It takes no signals, and not the service's life."""

    def __init__(self, app: App, settings: Settings, sock: socket.socket) -> None:
        self._sock = sock
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws=SocketProtocol,
                ws_max_size=settings.max_frame_bytes,
                ws_per_message_deflate=False,
                ws_ping_interval=PING_INTERVAL,
                ws_ping_timeout=PING_TIMEOUT,
                timeout_keep_alive=KEEP_ALIVE,
                backlog=BACKLOG,
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return url_of(self._sock)

    async def start(self) -> None:
        """Returns when requests are answered."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock]))
        started = asyncio.create_task(self._server.running.wait())
        await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        """Close the socket, let answers that have ended reach their clients, and cut what is left."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.running.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(LAST_WRITES, self._cut_all)
        await super().shutdown(sockets)
        timer.cancel()

    def _cut_all(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def serve(
    service_factory: Callable[[], ChatService],
    settings: Settings,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until a signal says to stop. In the main thread only.

    The port is taken before ``service_factory`` is called; Ctrl-C during that call is a KeyboardInterrupt.
    ``on_ready`` gets the base URL once requests are answered. SIGHUP has the file of API keys, if there is one, read
    again. Raises ConfigError for keys or a port that cannot be had, ModelUnavailable for a model that cannot.
    """
    access = Access(settings)
    with contextlib.closing(bind(settings)) as sock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        service = service_factory()
        archive = build_archive(service, settings)
        runner.run(_serve(service, archive, settings, access, sock, on_ready))


async def _serve(
    service: ChatService,
    archive: Archive,
    settings: Settings,
    access: Access,
    sock: socket.socket,
    on_ready: Callable[[str], None] | None,
) -> None:
    stop = asyncio.Event()
    serving = False

    def on_signal(number: int) -> None:
        if stop.is_set() or not serving:
            _exit_now(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if settings.api_keys_file is not None:
        loop.add_signal_handler(signal.SIGHUP, access.reload)
    try:
        await archive.start()
        await service.start()
        app = create_app(service, archive, access=access)
        server = ChatServer(app, settings, sock)
        await server.start()
        serving = True
        keep_for_good()
        if on_ready is not None:
            on_ready(server.url)
        await stop.wait()
        await shut_down(service, app, server, settings.shutdown_deadline)
    finally:
        await service.stop()
        await archive.stop()


async def shut_down(service: ChatService, app: App, server: ChatServer, deadline: float) -> None:
    """Readiness off at once; answers finish or fail by the deadline (seconds); then the connections close."""
    drained = asyncio.create_task(service.drain(deadline))
    await asyncio.sleep(0)
    await app.drain()
    await drained
    await server.stop()


def _exit_now(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
