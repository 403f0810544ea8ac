"""Requests by replica, those on their way included; then Ray's router with many requests at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from thrifty.serving.cluster.calls import HttpCall
from thrifty.serving.cluster.replica_loads import ReplicaLoads


@dataclass(frozen=True)
class ReplicaName:
    """What the router asks of Ray's name of a replica."""

    unique_id: str


def test_a_request_counts_from_its_choice_until_it_is_over() -> None:
    loads = ReplicaLoads()
    loads.chosen("request", "first")
    assert loads.of("first") == 1 and loads.of("first", without="request") == 0
    loads.chosen("request", "second")  # the first one was full
    assert (loads.of("first"), loads.of("second")) == (0, 1)
    loads.taken("request", "second")
    loads.given_up("request")  # too late
    loads.over("request", "first")  # the attempt that was refused ends late
    assert loads.of("second") == 1
    loads.over("request", "second")
    loads.over("request", "second")
    assert loads.of("second") == 0


def test_requests_that_nobody_took_and_replicas_that_are_gone_count_no_more() -> None:
    loads = ReplicaLoads()
    loads.chosen("hung up", "first")
    loads.given_up("hung up")
    loads.chosen("failed", "first")
    loads.over("failed", "second")  # sent to the next best, which died
    assert loads.of("first") == 0
    loads.taken("lost", "first")
    loads.taken("other", "second")
    loads.keep_only(["second"])
    assert (loads.of("first"), loads.of("second")) == (0, 1)


def test_requests_that_come_at_once_are_spread_before_any_is_taken() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'thrifty-engine[cluster]'")
    from thrifty.serving.cluster.routing import PrefixRequestRouter

    router: Any = PrefixRequestRouter.__new__(PrefixRequestRouter)
    router._replica_queue_len_cache = {}
    router.initialize_state()
    replicas: list[Any] = [SimpleNamespace(replica_id=ReplicaName(name)) for name in "abc"]

    async def run() -> Counter[str]:
        pending: list[Any] = [
            SimpleNamespace(
                args=[HttpCall({}, b"", [], None)],
                metadata=SimpleNamespace(internal_request_id=str(number)),
                future=asyncio.get_running_loop().create_future(),
            )
            for number in range(12)
        ]
        first: Counter[str] = Counter()
        for request in pending:
            ranks = await router.choose_replicas(replicas, request)
            assert len(ranks) == 3
            first[ranks[0][0].replica_id.unique_id] += 1
        for request in pending:
            request.future.cancel()
        await asyncio.sleep(0)
        assert [router._loads.of(name) for name in "abc"] == [0, 0, 0]
        return first

    assert asyncio.run(run()) == {"a": 4, "b": 4, "c": 4}
