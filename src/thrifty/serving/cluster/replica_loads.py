"""How many requests each replica has, those on their way to it included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection


class ReplicaLoads:
    """Requests by replica, from the moment that one is chosen for them.

    Many requests that come at once are all routed before the first of them is taken. Counted from then on only, every
    one of them would find the same replica idle.
    """

    def __init__(self) -> None:
        self._replica_of: dict[str, str] = {}
        self._on_their_way: set[str] = set()
        self._counts: Counter[str] = Counter()

    def of(self, replica: str, without: str | None = None) -> int:
        """Requests of a replica. without: a request that does not count, since it is about to be routed anew."""
        return self._counts[replica] - (without is not None and self._replica_of.get(without) == replica)

    def chosen(self, request: str, replica: str) -> None:
        """A request is to go to a replica, instead of the one that was chosen for it before."""
        self._move(request, replica)
        self._on_their_way.add(request)

    def taken(self, request: str, replica: str) -> None:
        """A replica took a request."""
        self._move(request, replica)
        self._on_their_way.discard(request)

    def given_up(self, request: str) -> None:
        """A request goes nowhere, since its client hung up. Without effect on one that was taken."""
        if request in self._on_their_way:
            self._forget(request)

    def over(self, request: str, replica: str) -> None:
        """A request is over on a replica. Without effect where another one took it since."""
        if request in self._on_their_way or self._replica_of.get(request) == replica:
            self._forget(request)

    def keep_only(self, replicas: Collection[str]) -> None:
        """Forget replicas that are no more, and their requests."""
        for request in [request for request, replica in self._replica_of.items() if replica not in replicas]:
            self._forget(request)

    def _move(self, request: str, replica: str) -> None:
        self._forget(request)
        self._replica_of[request] = replica
        self._counts[replica] += 1

    def _forget(self, request: str) -> None:
        self._on_their_way.discard(request)
        replica = self._replica_of.pop(request, None)
        if replica is not None:
            self._counts[replica] -= 1
            if not self._counts[replica]:
                del self._counts[replica]
