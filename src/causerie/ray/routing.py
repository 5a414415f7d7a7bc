"""Which engine a request goes to: the one that the ingress wishes for, else the less busy of two at random."""

from __future__ import annotations

import random

from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica


class PreferredReplicaRouter(LocalityMixin, RequestRouter):
    """Tries the replica that a request's ``session_id`` names, then the power of two choices over the others.

    A preferred replica that is full or gone costs nothing but the warmth of its cache.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        wanted = pending_request.metadata.session_id if pending_request is not None else ""
        preferred = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        others = [replica for replica in candidate_replicas if replica not in preferred]
        two = random.sample(others, min(2, len(others)))
        return [ranked for ranked in (preferred, two) if ranked]
