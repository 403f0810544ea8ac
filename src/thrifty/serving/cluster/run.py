"""Running the front and its replicas until they are told to stop."""

from __future__ import annotations

from collections.abc import Callable

from thrifty.engine.engine import Engine
from thrifty.serving.cluster.deployment import Deployment
from thrifty.serving.cluster.front import Front
from thrifty.serving.cluster.settings import ClusterSettings
from thrifty.serving.run import Draining, run_server
from thrifty.serving.settings import ServerSettings


def serve_cluster(
    settings: ServerSettings,
    cluster: ClusterSettings,
    open_engine: Callable[[], Engine],
    listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; answers under way get `drain_seconds` to end. SIGHUP restarts the replicas, one
    after the other, without refusing anybody. open_engine: opens the model in a replica; travels by pickle.
    listening: told the URL.

    Raises ServerError where the address or Ray cannot be had, or the replicas cannot be started.
    """
    settings.check()
    cluster.check()
    front = Front(settings, Deployment(settings, cluster, open_engine), cluster.retries, failed=lambda: server.stop())
    server = Draining(front.app, settings.drain_seconds, front.forwarding.end_all)
    run_server(server, settings, listening)
    if front.failure is not None:
        raise front.failure
