"""Which replicas of a deployment are there, as Ray Serve's controller tells its routers: pushed, not asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaState
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
_PASSING = (ReplicaState.UPDATING, ReplicaState.RECOVERING)
"""States in which a replica is not among the running ones, and comes back."""


def watch(deployment: str, app: str, on_change: Callable[[frozenset[str]], None]) -> None:
    """Call ``on_change`` on this event loop with the names of the running replicas, now and at each change.

    What Ray lets an application know of this is its own router's view alone, hence the private client.
    """
    key: Any = (LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(deployment, app))

    def tell(targets: Any) -> None:
        on_change(frozenset(replica.replica_id.unique_id for replica in targets.running_replicas))

    LongPollClient(
        ray.get_actor(_CONTROLLER, namespace="serve"),
        {key: tell},
        call_in_event_loop=asyncio.get_running_loop(),
        client_id=f"causerie:{ray.get_runtime_context().get_actor_id()}",
    )


def is_leaving(deployment: str, app: str) -> bool:
    """Whether a replica that runs no more is on its way out; blocks. False while one of its kind may come back."""
    application = serve.status().applications.get(app)
    found = application.deployments.get(deployment) if application else None
    return found is None or not any(found.replica_states.get(state) for state in _PASSING)
