"""Which engine a request goes to: what the ingress chose (``Placement``), else the less busy of two at random."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

ANSWER_SECONDS = 1.0


class PreferredReplicaRouter(RequestRouter):
    """Tries the replica that a request's ``session_id`` names, then the power of two choices over the others.

    A preferred replica is passed over where it is gone, full, or more than ``slack`` requests busier than the least
    busy one; what is believed of either may be off by ``leeway``.
    ``gains`` is sent to the named replica only: what it asks for no other has.
    ``generate`` is sent only to replicas that have less than ``places`` and ``leeway`` requests: what Ray allows them
    beyond that (``max_ongoing_requests``) is for questions about the replica, which a full one should answer too.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Ray calls it with ``request_router_kwargs``: ``places``, ``leeway`` and ``slack``."""
        self._most: int = kwargs["places"] + kwargs["leeway"]
        self._slack: int = kwargs["slack"] + kwargs["leeway"]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        wanted = pending_request.metadata.session_id
        open_ = candidate_replicas
        if pending_request.metadata.call_method == "gains":
            return [[replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]]
        if pending_request.metadata.call_method == "generate":
            open_ = self._open(candidate_replicas)
            if not open_:
                await self._ask(candidate_replicas)
                open_ = self._open(candidate_replicas)
        least = min(map(self._requests, open_), default=0)
        preferred = [
            replica
            for replica in open_
            if replica.replica_id.unique_id == wanted and self._requests(replica) <= least + self._slack
        ]
        others = [replica for replica in open_ if replica not in preferred]
        two = random.sample(others, min(2, len(others)))
        return [ranked for ranked in (preferred, two) if ranked]

    def _open(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        return [replica for replica in replicas if self._requests(replica) < self._most]

    async def _ask(self, replicas: list[RunningReplica]) -> None:
        """How many they really have: what is believed is off where many come and go, and expires after ten seconds."""
        answers = await asyncio.gather(
            *(asyncio.wait_for(one.get_queue_len(deadline_s=ANSWER_SECONDS), ANSWER_SECONDS) for one in replicas),
            return_exceptions=True,
        )
        for replica, answer in zip(replicas, answers, strict=True):
            if isinstance(answer, int):
                self.on_new_queue_len_info(replica.replica_id, answer)

    def _requests(self, replica: RunningReplica) -> int:
        """As far as is known here: what this router has sent there, and what it was told when it last asked."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0
