"""The application, from its arguments: ``serve run causerie.ray:build name=value…``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from click import ClickException
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from causerie.chat.stores import make_store
from causerie.config import Settings, load_settings
from causerie.errors import ConfigError
from causerie.ray.deployments import Engine, Ingress, Server, needs_shared
from causerie.ray.placement import slack
from causerie.ray.routing import PreferredReplicaRouter
from causerie.web.access import Access

ASIDE = 64
"""Requests to an engine beside its sequences: a channel for each ingress, and questions about it."""
LONGEST_ANSWER_SECONDS = 600.0
LAST_WORDS_SECONDS = 5.0
"""Beyond ``shutdown_deadline``: for an ingress to end what still runs, to tell its readers and to keep it."""
MEMORY = ":memory:"
MANY = 100_000
"""Requests to whoever holds sockets: one that says nothing costs nothing, and admission is our own."""

_RAYS_OWN = {
    "host": "give http_options.host in the config file, or serve start --http-host",
    "port": "give http_options.port in the config file, or serve start --http-port",
    "log_level": "give logging_config in the config file",
    "send_timeout": "Ray's proxy takes an answer whether or not its client reads",
}


@dataclass(frozen=True, slots=True)
class Arguments:
    settings: Settings
    least: int
    most: int
    ingresses: int
    embedded: bool


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for ``serve run causerie.ray:build name=value…`` and for ``args`` in a config file.

    ``args`` are settings by their YAML names, and three more. ``engines``: how many engine replicas, as ``2`` or
    ``1-4`` to have Ray Serve scale between the two by load. ``ingresses``: how many hold sockets; several need a
    store that they share. ``embedded``: ``true`` for one deployment, each replica of which is a whole server with an
    engine of its own. Raises ClickException for what is unknown or out of range.
    """
    try:
        arguments = _take(dict(args))
    except ConfigError as error:
        raise ClickException(error.message) from None  # ``serve run`` tells it in one line.
    values = arguments.settings.model_dump()
    fronts: dict[str, Any] = {
        "max_ongoing_requests": MANY,
        "graceful_shutdown_timeout_s": arguments.settings.shutdown_deadline + LAST_WORDS_SECONDS,
        "health_check_period_s": 2,
    }
    if arguments.embedded:
        server = serve.deployment(name="Server", num_replicas=arguments.most, **fronts)(serve.ingress(None)(Server))
        return server.bind(values)
    fronts["num_replicas"] = arguments.ingresses
    ingress = serve.deployment(name="Ingress", **fronts)(serve.ingress(None)(Ingress))
    return ingress.bind(_engines(arguments).bind(values), values, arguments.most)


def _engines(arguments: Arguments) -> serve.Deployment:
    places = arguments.settings.max_batch_size
    # What the router believes of an engine can be off by those that come and go just now.
    leeway = max(2, places // 8)
    how_many: dict[str, Any] = {"num_replicas": arguments.least}
    if arguments.most > arguments.least:
        how_many = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=arguments.least,
                max_replicas=arguments.most,
                target_ongoing_requests=max(1, places // 2),
            )
        }
    router: Any = PreferredReplicaRouter
    deployment: serve.Deployment = serve.deployment(
        name="Engine",
        max_ongoing_requests=places + leeway + ASIDE,
        request_router_config=RequestRouterConfig(
            request_router_class=router,
            request_router_kwargs={"places": places, "leeway": leeway, "slack": slack(places)},
        ),
        # A replica that is scaled away finishes its answers; whoever ends sooner, ends them from the ingress.
        graceful_shutdown_timeout_s=LONGEST_ANSWER_SECONDS,
        health_check_period_s=2,
        logging_config={"enable_access_log": False},  # The ingress has a line for each request, and nobody else asks.
        **how_many,
    )(Engine)
    return deployment


def _take(given: dict[str, Any]) -> Arguments:
    for name in sorted(set(given) & set(_RAYS_OWN)):
        raise ConfigError(f"On Ray Serve, {name!r} is not causerie's to set: {_RAYS_OWN[name]}.", param=name)
    engines, embedded = str(given.pop("engines", "1")), str(given.pop("embedded", False)).lower()
    if embedded not in ("true", "false"):
        raise ConfigError(f"'embedded' must be true or false, not {embedded!r}.", param="embedded")
    if embedded == "true" and "ingresses" in given:
        raise ConfigError(
            "With embedded=true there are no 'ingresses': 'engines' says how many servers.", param="ingresses"
        )
    least, _, most = engines.partition("-")
    found = _count(least), _count(most or least)
    if not 1 <= found[0] <= found[1]:
        raise ConfigError(f"'engines' must be a number from 1, or two as in 1-4, not {engines!r}.", param="engines")
    if embedded == "true" and found[0] < found[1]:
        raise ConfigError(
            f"With embedded=true, 'engines' must be one number, not {engines!r}: Ray would scale by open sockets.",
            param="engines",
        )
    ingresses = _count(wanted := str(given.pop("ingresses", "1")))
    if ingresses < 1:
        raise ConfigError(f"'ingresses' must be a number from 1, not {wanted!r}.", param="ingresses")
    settings = _for_ray(load_settings(given), found[1] if embedded == "true" else ingresses)
    return Arguments(settings, *found, ingresses, embedded == "true")


def _count(text: str) -> int:
    """0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() else 0


def _for_ray(settings: Settings, servers: int) -> Settings:
    """As so many servers need them that begin anywhere.

    With the hashes of all keys in place of their file, which need not be there; answering to any name, for the address
    at which Ray's proxy listens is not known here; and with a store that all of them can have at once.
    """
    keys = Access(settings).keys
    return settings.model_copy(
        update={
            "api_keys": None if keys is None else dict(keys.hashes),
            "api_keys_file": None,
            "allowed_hosts": settings.allowed_hosts or ("*",),
            "store": _store(settings, servers),
        }
    )


def _store(settings: Settings, servers: int) -> str:
    reference = MEMORY if settings.store == "default" else settings.store
    shared = make_store(reference, int(settings.store_max_gib * 2**30)).shared
    if reference != MEMORY and not shared:
        raise ConfigError(
            f"On Ray Serve, 'store' cannot be the file {reference!r}: in a rolling update two processes would want it. "
            "Give redis://host:6379/0, or leave it out to keep responses in memory.",
            param="store",
        )
    if servers > 1 and not shared:
        raise ConfigError(needs_shared(servers), param="store")
    return reference
