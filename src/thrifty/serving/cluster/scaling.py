"""How many replicas a load needs: by requests, and by the memory that their caches hold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

MEMORY = 0.85
"""Share of a replica's budget, beyond which others should take some of its load."""


def replicas_needed(
    running: int, requests: float, target: float, waiting: Iterable[float], memory: Iterable[float]
) -> int:
    """running: replicas now, 1 or more. requests: under way on all of them and in the queue before them. target: of one
    replica. waiting: requests that wait inside each replica. memory: share of each one's budget that is in use.

    The memory of an idle replica's prefix tree is no reason for another one: it counts where requests wait for it.
    """
    by_requests = math.ceil(requests / target)
    shares, queues = list(memory), sum(waiting)
    by_memory = math.ceil(running * (sum(shares) / len(shares)) / MEMORY) if shares and queues else 0
    return max(1, by_requests, by_memory)


def policy(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Ray Serve's question, answered by `replicas_needed`. Bounds and delays are Ray's."""
    measured = context.aggregated_metrics or {}
    running = context.current_num_replicas
    if not running:
        return context.target_num_replicas, {}
    needed = replicas_needed(
        running,
        context.total_num_requests,
        context.config.get_target_ongoing_requests(),
        measured.get("waiting", {}).values(),
        measured.get("memory", {}).values(),
    )
    return needed, {}
