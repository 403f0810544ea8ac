"""Our router's order of the replicas, as Ray Serve asks for it. Ray knows who is alive and who is full."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from thrifty.serving.cluster.calls import HttpCall
from thrifty.serving.cluster.prefix_router import IMBALANCE, ROUTERS, PrefixRouter
from thrifty.serving.cluster.replica_loads import ReplicaLoads


class PrefixRequestRouter(RequestRouter):
    """Sends a request where the router of its name says; to the next best replica where that one is full."""

    queue_len_response_deadline_s = 1.0
    max_queue_len_response_deadline_s = 5.0

    def initialize_state(self, routing: str = "prefix", imbalance: float = IMBALANCE, **_: Any) -> None:
        """routing: a name of `prefix_router.ROUTERS`."""
        self._router: PrefixRouter = ROUTERS[routing](imbalance)
        self._loads = ReplicaLoads()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica a rank, the best first."""
        call = _call_of(pending_request)
        if call is None or pending_request is None or not candidate_replicas:
            return [list(candidate_replicas)]
        request = pending_request.metadata.internal_request_id
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self._load(name, replica.replica_id, request) for name, replica in named.items()}
        ranked = self._router.ranked(call.blocks, loads, call.session)
        self._loads.chosen(request, ranked[0])
        pending_request.future.add_done_callback(lambda end: self._loads.given_up(request) if end.cancelled() else None)
        return [[named[name]] for name in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica took a request."""
        name = replica_id.unique_id
        self._loads.taken(pending_request.metadata.internal_request_id, name)
        call = _call_of(pending_request)
        if call is not None:
            self._router.sent(name, call.blocks, call.session)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A request is over, however it ended."""
        self._loads.over(internal_request_id, replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Who runs now."""
        super().update_replicas(replicas)
        alive = {replica.replica_id.unique_id: None for replica in replicas}
        self._loads.keep_only(alive)
        self._router.keep_only(alive)

    def _load(self, name: str, replica: ReplicaID, request: str) -> int:
        """Requests under way beside the one that is routed: those that we know of, or those that Ray counts."""
        return max(self._loads.of(name, without=request), self.replica_queue_len_cache.get(replica) or 0)


def _call_of(request: PendingRequest | None) -> HttpCall | None:
    arguments = () if request is None else request.args
    return arguments[0] if arguments and isinstance(arguments[0], HttpCall) else None
