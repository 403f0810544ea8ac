"""Running the front and its replicas until they are told to stop."""

from __future__ import annotations

from collections.abc import Callable

from thrifty.serving.cluster.deployment import Deployment
from thrifty.serving.cluster.front import Front
from thrifty.serving.cluster.settings import ClusterSettings
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.run import Draining, run_server
from thrifty.serving.settings import ServerSettings


def serve_cluster(
    name: str,
    settings: ServerSettings,
    cluster: ClusterSettings,
    shelf: Callable[[], ModelShelf],
    listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; answers under way get `drain_seconds` to end. SIGHUP restarts the replicas, one
    after the other, without refusing anybody. name: of what is served. shelf: makes the models of a replica; it
    travels by pickle. listening: told the URL.

    Raises ServerError where the address or Ray cannot be had, or the replicas cannot be started.
    """
    settings.check()
    cluster.check()
    deployment = Deployment(name, settings, cluster, shelf)
    front = Front(settings, deployment, cluster.retries, failed=lambda: server.stop())
    server = Draining(front.app, settings.drain_seconds, front.forwarding.end_all)
    run_server(server, settings, listening)
    if front.failure is not None:
        raise front.failure
