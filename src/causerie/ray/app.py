"""The application: an ingress that holds the sockets, and a pool of engines behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from contextvars import Context
from dataclasses import replace
from typing import Any

import ray
from click import ClickException
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from causerie.chat.build import build_engine, build_text, find_model
from causerie.chat.service import ChatService
from causerie.config import Settings, load_settings
from causerie.engines.base import EngineInfo
from causerie.errors import ConfigError
from causerie.ray.engine import PooledEngine, pool_of
from causerie.ray.metrics import join
from causerie.ray.replica import EngineHost, Gain
from causerie.ray.routing import PreferredReplicaRouter
from causerie.ray.watch import is_leaving, watch
from causerie.types import SamplingParams
from causerie.web.app import App, create_app

SCRAPE_SECONDS = 5.0
"""How long /metrics waits for the other replicas."""

ASIDE = 16
"""Requests to an engine beside its sequences: for metrics, and what it can do."""
LONGEST_ANSWER_SECONDS = 600.0

_RAYS_OWN = {
    "host": "give http_options.host in the config file, or serve start --http-host",
    "port": "give http_options.port in the config file, or serve start --http-port",
    "log_level": "give logging_config in the config file",
    "send_timeout": "Ray's proxy takes an answer whether or not its client reads",
}


def _is_gone(actor: str) -> bool:
    """Whether the actor of this name has ended. One that is being drained is still there."""
    try:
        ray.get_actor(actor, namespace="serve")  # Ray Serve's own, in which all its replicas are.
    except ValueError:
        return True
    return False


def _pool(one: EngineInfo, replicas: int) -> EngineInfo:
    """So many engines as one."""
    return replace(one, kv_tokens=one.kv_tokens * replicas, max_sequences=one.max_sequences * replicas)


class Engine:
    """A replica of the pool. Its constructor loads the model."""

    async def __init__(self, settings: dict[str, Any]) -> None:
        chosen = Settings(**settings)
        folder = await asyncio.to_thread(find_model, chosen)
        engine, self._reason = await asyncio.to_thread(build_engine, chosen, folder)
        self._host = EngineHost(engine, prefill_piece=chosen.prefill_piece, is_gone=_is_gone)
        self._name = serve.get_replica_context().replica_id.unique_id
        await self._host.start()

    async def scrape(self) -> tuple[str, bytes]:
        """Its name, and what it has to say to Prometheus."""
        return self._name, self._host.metrics()

    async def describe(self) -> tuple[EngineInfo, str]:
        """What one replica can do, and why its engine is this one."""
        return self._host.info, self._reason

    async def generate(self, caller: str, key: int, prompt: list[int], sampling: SamplingParams) -> AsyncIterator[str]:
        """See ``EngineHost.generate``; says which replica this is, and ends with the sequence."""
        yield self._name
        await self._host.generate(caller, key, prompt, sampling)

    async def gains(self, caller: str) -> AsyncIterator[list[Gain]]:
        """See ``EngineHost.gains``."""
        async with aclosing(self._host.gains(caller)) as channel:
            async for gains in channel:
                yield gains


class Ingress:
    """Sockets, protocols, admission and response logs: the whole server of ``causerie serve``, without its engine."""

    async def __init__(self, engines: DeploymentHandle[Engine], settings: dict[str, Any], most: int) -> None:
        chosen = Settings(**settings)
        folder = await asyncio.to_thread(find_model, chosen)
        text, name = await asyncio.to_thread(build_text, folder)
        self._one, reason = await engines.describe.remote()
        pool = _pool(self._one, most)
        caller = ray.get_runtime_context().get_actor_name()
        assert caller is not None
        engine = PooledEngine(pool_of(engines, caller), pool, replica_kv_tokens=self._one.kv_tokens)
        whole = chosen.model_copy(update={"max_batch_size": pool.max_sequences})
        self._service = ChatService(engine, text, name, whole, engine_reason=reason)
        await self._service.start()
        self._app = create_app(self._service, self._metrics)
        self._place = context = serve.get_replica_context()
        self._name = context.replica_id.unique_id
        self._everybody = (engines, serve.get_deployment_handle(context.deployment, context.app_name))
        self._seen = False
        self._draining: asyncio.Task[None] | None = None
        watch(engines.deployment_name, context.app_name, self._on_engines)
        watch(context.deployment, context.app_name, self._on_ingresses)

    def __serve_build_asgi_app__(self) -> App:
        return self._app

    def _on_engines(self, running: frozenset[str]) -> None:
        """Admission reckons with those that there are; what comes while there is none waits for one."""
        there = _pool(self._one, max(1, len(running)))
        self._service.resize(max_sequences=there.max_sequences, kv_tokens=there.kv_tokens)

    def _on_ingresses(self, running: frozenset[str]) -> None:
        if self._name in running:
            self._seen = True
        elif self._seen and (self._draining is None or self._draining.done()):
            self._draining = asyncio.create_task(self._drain(), context=Context())

    async def _drain(self) -> None:
        """Close idle sockets: Ray waits for the requests of a replica that it drains, and tells it nothing."""
        if await asyncio.to_thread(is_leaving, self._place.deployment, self._place.app_name):
            await self._app.drain()

    async def scrape(self) -> tuple[str, bytes]:
        """Its name, and what it has to say to Prometheus."""
        return self._name, self._service.metrics.render()

    async def _metrics(self) -> bytes:
        """Of all replicas, not only of the one that was asked; one that cannot answer is left out."""
        asked = [handle.broadcast("scrape") for handle in self._everybody]
        answers = await asyncio.gather(
            *(one.results_async(timeout_s=SCRAPE_SECONDS, return_exceptions=True) for one in asked),
            return_exceptions=True,
        )
        found = [page for pages in answers if isinstance(pages, list) for page in pages]
        return join(dict(page for page in found if isinstance(page, tuple)))


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for ``serve run causerie.ray:build name=value…`` and for ``args`` in a config file.

    ``args`` are settings by their YAML names, and ``engines``: how many engine replicas, as ``2`` or ``1-4`` to have
    Ray Serve scale between the two by load. Raises ClickException for one that is unknown or out of range.
    """
    try:
        settings, least, most = _take(dict(args))
    except ConfigError as error:
        raise ClickException(error.message) from None  # ``serve run`` tells it in one line.
    values = settings.model_dump()
    engine_options: dict[str, Any] = {"num_replicas": least}
    if most > least:
        engine_options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least, max_replicas=most, target_ongoing_requests=max(1, settings.max_batch_size // 2)
            )
        }
    router: Any = PreferredReplicaRouter
    # A few more than run: what the router believes of an engine can be off by those that come and go just now.
    limit = settings.max_batch_size + max(2, settings.max_batch_size // 8)
    engines = serve.deployment(
        name="Engine",
        max_ongoing_requests=limit + ASIDE,
        request_router_config=RequestRouterConfig(
            request_router_class=router,
            request_router_kwargs={
                "sequences": limit,
                "slack": max(1, settings.max_batch_size // 4),
            },
        ),
        # A replica that is scaled away finishes its answers; whoever ends sooner, ends them from the ingress.
        graceful_shutdown_timeout_s=LONGEST_ANSWER_SECONDS,
        health_check_period_s=2,
        logging_config={"enable_access_log": False},  # The ingress has a line for each request, and nobody else asks.
        **engine_options,
    )(Engine)
    ingress = serve.deployment(
        name="Ingress",
        max_ongoing_requests=100_000,  # An open socket that says nothing costs nothing, and admission is our own.
        graceful_shutdown_timeout_s=settings.shutdown_deadline,
        health_check_period_s=2,
    )(serve.ingress(None)(Ingress))
    return ingress.bind(engines.bind(values), values, most)


def _take(given: dict[str, Any]) -> tuple[Settings, int, int]:
    text = str(given.pop("engines", "1"))
    for name in sorted(set(given) & set(_RAYS_OWN)):
        raise ConfigError(f"On Ray Serve, {name!r} is not causerie's to set: {_RAYS_OWN[name]}.", param=name)
    least, _, most = text.partition("-")
    try:
        found = int(least), int(most or least)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise ConfigError(f"'engines' must be a number from 1, or two as in 1-4, not {text!r}.", param="engines")
    return load_settings(given), *found
