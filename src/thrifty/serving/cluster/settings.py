"""What an operator decides about a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.serving.cluster.prefix_router import IMBALANCE, ROUTERS
from thrifty.serving.settings import ServerError


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How many replicas there are, what each of them takes, and where they run."""

    #: Replicas; the least of them where `most_replicas` is more.
    replicas: int = 2
    #: As many as the load may bring; None: `replicas`.
    most_replicas: int | None = None
    #: Cores, and threads of native code, of one replica.
    threads: int = 1
    #: Bytes that Ray sets aside on a node for one replica; None: it does not ask for any.
    memory: int | None = None
    #: Most sequences that one replica computes at a time.
    batch: int = 16
    #: Most requests that wait on one replica.
    queue: int = 64
    #: A running Ray cluster, "auto" or HOST:PORT; None: one on this machine, for as long as the server runs.
    address: str | None = None
    #: A name of `prefix_router.ROUTERS`.
    routing: str = "prefix"
    #: Most requests of one replica, as a multiple of the mean (see `prefix_router`).
    imbalance: float = IMBALANCE
    #: How often a request that was lost with its replica is sent to another one.
    retries: int = 3

    def check(self) -> None:
        """Raise ServerError for what cannot be."""
        if self.replicas < 1:
            raise ServerError(f"--replicas is {self.replicas}; give 1 or more")
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ServerError(f"--max-replicas is {self.most_replicas}, less than --replicas {self.replicas}")
        if self.threads < 1:
            raise ServerError(f"--threads is {self.threads}; a replica needs 1 or more")
        if self.address is not None and "://" in self.address:
            raise ServerError(
                f"--ray-address is '{self.address}': the front must run on a node of the cluster; start it there "
                "(`ray start --address=HOST:PORT --num-cpus=0` makes this machine one) and give HOST:PORT or auto"
            )
        if self.routing not in ROUTERS:
            raise ServerError(f"routing is '{self.routing}'; there are {', '.join(ROUTERS)}")
        if self.imbalance < 1:
            raise ServerError(f"imbalance is {self.imbalance:g}; the mean load is 1, give that or more")
