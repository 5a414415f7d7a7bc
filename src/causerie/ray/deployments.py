"""The deployments: an ingress that holds the sockets, the engines behind it, and a server that is both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import Context
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from causerie.chat.archive import Archive
from causerie.chat.build import build_archive, build_engine, build_service, build_text, find_model
from causerie.chat.garbage import keep_for_good
from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.engines.base import EngineInfo
from causerie.errors import ConfigError
from causerie.ray.engine import PooledEngine
from causerie.ray.metrics import join
from causerie.ray.placement import whole
from causerie.ray.pool import pool_of
from causerie.ray.replica import EngineHost, Gain
from causerie.ray.watch import is_leaving, watch
from causerie.types import SamplingParams
from causerie.web.app import App, create_app

SCRAPE_SECONDS = 5.0
"""How long /metrics waits for the other replicas."""


def _is_gone(actor: str) -> bool:
    """Whether the actor of this name has ended. One that is being drained is still there."""
    try:
        ray.get_actor(actor, namespace="serve")  # Ray Serve's own, in which all its replicas are.
    except ValueError:
        return True
    return False


def needs_shared(servers: int) -> str:
    """Why several servers are refused a store of their own each."""
    return (
        f"{servers} servers need a store that they share, or one would not know what another was told: "
        "give store=redis://host:6379/0."
    )


class Engine:
    """A replica of the pool. Its constructor loads the model."""

    async def __init__(self, settings: dict[str, Any]) -> None:
        chosen = Settings(**settings)
        folder = await asyncio.to_thread(find_model, chosen)
        text, _ = await asyncio.to_thread(build_text, folder)
        engine, self._reason = await asyncio.to_thread(build_engine, chosen, folder, text)
        self._host = EngineHost(engine, prefill_piece=chosen.prefill_piece, is_gone=_is_gone)
        self._name = serve.get_replica_context().replica_id.unique_id
        await self._host.start()
        keep_for_good()

    async def scrape(self) -> tuple[str, bytes]:
        """Its name, and what it has to say to Prometheus."""
        return self._name, self._host.metrics()

    async def describe(self) -> tuple[EngineInfo, str]:
        """What one replica can do, and why its engine is this one."""
        return self._host.info, self._reason

    async def generate(
        self, caller: str, channel: int, key: int, prompt: list[int], sampling: SamplingParams
    ) -> AsyncIterator[str]:
        """See ``EngineHost.generate``; says which replica this is, and ends with the sequence."""
        yield self._name
        await self._host.generate(caller, channel, key, prompt, sampling)

    async def prefill(self, prompt: list[int], gently: bool) -> AsyncIterator[tuple[str, int | None]]:
        """See ``EngineHost.prefill``; says which replica this is, and how much was cached."""
        yield self._name, await self._host.prefill(prompt, gently=gently)

    async def gains(self, caller: str, channel: int) -> AsyncIterator[list[Gain]]:
        """See ``EngineHost.gains``."""
        async with aclosing(self._host.gains(caller, channel)) as steps:
            async for gains in steps:
                yield gains


class Front:
    """What clients are connected to: the whole server of ``causerie serve``, on some service."""

    def __init__(self, service: ChatService, archive: Archive, *others: DeploymentHandle[Any]) -> None:
        """To be called on the replica's event loop; ``others`` are asked for metrics, too."""
        self.app = create_app(service, archive, self._all_metrics)
        self._service = service
        self._archive = archive
        self._place = context = serve.get_replica_context()
        self.name = context.replica_id.unique_id
        self._everybody = (*others, serve.get_deployment_handle(context.deployment, context.app_name))
        self._seen = False
        self._draining: asyncio.Task[None] | None = None
        self._deadline: float | None = None
        watch(context.deployment, context.app_name, self._on_replicas)

    @classmethod
    async def start(cls, service: ChatService, *others: DeploymentHandle[Any]) -> Front:
        """With the archive and the service. Raises what theirs raise, and ConfigError for too many replicas."""
        archive = build_archive(service, service.settings)
        servers = serve.get_replica_context().world_size
        if servers > 1 and not archive.store.shared:
            raise ConfigError(needs_shared(servers), param="store")
        await archive.start()
        await service.start()
        keep_for_good()
        return cls(service, archive, *others)

    async def stop(self) -> None:
        """When no request is open any more: let what runs without one finish, as long as it may, and keep its end."""
        await self._service.drain(self._seconds_left())
        await self._service.stop()
        await self._archive.stop()

    def metrics(self) -> tuple[str, bytes]:
        """Its name, and what it has to say to Prometheus."""
        return self.name, self._service.metrics.render()

    async def _all_metrics(self) -> bytes:
        """Of all replicas, not only of the one that was asked; one that cannot answer is left out."""
        asked = [handle.broadcast("scrape") for handle in self._everybody]
        answers = await asyncio.gather(
            *(one.results_async(timeout_s=SCRAPE_SECONDS, return_exceptions=True) for one in asked),
            return_exceptions=True,
        )
        found = [page for pages in answers if isinstance(pages, list) for page in pages]
        return join(dict(page for page in found if isinstance(page, tuple)))

    def _on_replicas(self, running: frozenset[str]) -> None:
        if self.name in running:
            self._seen = True
            if self._draining is not None:
                self._draining.cancel()
                self._draining = self._deadline = None
        elif self._seen and (self._draining is None or self._draining.done()):
            self._draining = asyncio.create_task(self._drain(), context=Context())

    async def _drain(self) -> None:
        """Close idle sockets: Ray waits for the requests of a replica that it drains, and tells it nothing.

        New requests may still come for a moment. What runs at the deadline ends before Ray ends the process.
        """
        if await asyncio.to_thread(is_leaving, self._place.deployment, self._place.app_name):
            left = self._seconds_left()
            await self.app.drain()
            await asyncio.sleep(left)
            await self._service.drain(0)

    def _seconds_left(self) -> float:
        """Until the deadline, which is set when it is first asked for."""
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._service.settings.shutdown_deadline
        return max(0.0, self._deadline - now)


class _Served:
    """What Ray Serve asks of a replica with a ``Front``."""

    _front: Front

    def __serve_build_asgi_app__(self) -> App:
        return self._front.app

    async def scrape(self) -> tuple[str, bytes]:
        return self._front.metrics()

    async def __del__(self) -> None:
        """Ray Serve awaits it when it stops the replica."""
        if hasattr(self, "_front"):  # Else it never began.
            await self._front.stop()


class Ingress(_Served):
    """Sockets, protocols, admission and response logs: the whole server, without its engine."""

    async def __init__(self, engines: DeploymentHandle[Engine], settings: dict[str, Any], most: int) -> None:
        chosen = Settings(**settings)
        folder = await asyncio.to_thread(find_model, chosen)
        text, name = await asyncio.to_thread(build_text, folder)
        self._one, reason = await engines.describe.remote()
        caller = ray.get_runtime_context().get_actor_name()
        assert caller is not None
        self._pool = PooledEngine(pool_of(engines, caller), self._one, most)
        chosen = chosen.model_copy(update={"max_batch_size": self._pool.info.max_sequences})
        self._service = ChatService(self._pool, text, name, chosen, engine_reason=reason)
        self._front = await Front.start(self._service, engines)
        watch(engines.deployment_name, serve.get_replica_context().app_name, self._on_engines)

    def _on_engines(self, running: frozenset[str]) -> None:
        """Admission reckons with those that there are; what comes while there is none waits for one."""
        self._pool.is_there(running)
        there = whole(self._one, max(1, len(running)))
        self._service.resize(max_sequences=there.max_sequences, kv_tokens=there.kv_tokens)


class Server(_Served):
    """The whole server in one process, its engine included."""

    async def __init__(self, settings: dict[str, Any]) -> None:
        service = await asyncio.to_thread(build_service, Settings(**settings))
        self._front = await Front.start(service)
