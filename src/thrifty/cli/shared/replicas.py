"""What --cluster and its options ask for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from thrifty import extras

if TYPE_CHECKING:
    from thrifty.serving.cluster.settings import ClusterSettings

REPLICAS = 2


def replicas_asked(
    cluster: bool,
    replicas: int | None,
    max_replicas: int | None,
    ray_address: str | None,
    *,
    threads: int | None,
    memory: int | None,
    batch: int,
    queue: int,
) -> ClusterSettings | None:
    """None without --cluster. threads, memory, batch, queue: of each replica.

    Raises typer.BadParameter for options that do not go together, MissingExtra where Ray is not installed, and what
    `ClusterSettings.check` raises.
    """
    if not cluster:
        given = {"replicas": replicas, "max-replicas": max_replicas, "ray-address": ray_address}
        for name in (name for name, value in given.items() if value is not None):
            raise typer.BadParameter(f"--{name} is for several replicas; give --cluster too")
        return None
    extras.require("ray", "cluster", "thrifty serve --cluster")
    from thrifty.serving.cluster.settings import ClusterSettings

    if threads is None and ray_address is not None:
        raise typer.BadParameter("--threads is missing: how many cores a replica takes on the machines of the cluster")
    number = replicas or REPLICAS
    asked = ClusterSettings(
        replicas=number,
        most_replicas=max_replicas,
        threads=threads or max(1, (os.cpu_count() or 1) // number),
        memory=memory,
        batch=batch,
        queue=queue,
        address=ray_address,
    )
    asked.check()
    return asked
