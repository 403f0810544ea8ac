"""The replicas as a deployment of Ray Serve: started, asked, restarted one after the other, and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.types import Message

from thrifty.errors import QueueFullError
from thrifty.serving.cluster.calls import HttpCall
from thrifty.serving.cluster.forwarding import ReplicaLost
from thrifty.serving.cluster.replica import Replica
from thrifty.serving.cluster.settings import ClusterSettings
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.settings import ServerError, ServerSettings

DEPLOYMENT = "replica"
SPARE = 16
"""Requests beyond batch and queue that reach a replica, so that the engine refuses them, by its own words."""

LEAST_WAITING = 128

OBJECT_STORE = 100 << 20
"""Bytes of Ray's object store on this machine: requests and answers pass through it, weights never do."""

PATIENCE = 5.0
"""Seconds in which replicas tell their metrics and sessions."""

RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}
"""Unless the operator says otherwise, Ray sends its makers no statistics, and leaves signals to the server."""

POLL = 0.2
"""Seconds between two looks at how far the replicas are."""

_LOG = logging.getLogger("thrifty.serving")


class Deployment:
    """N replicas of one application. name: of what they serve. shelf: makes the models of a replica; it travels by
    pickle.
    """

    def __init__(
        self, name: str, settings: ServerSettings, cluster: ClusterSettings, shelf: Callable[[], ModelShelf]
    ) -> None:
        self.name = name
        self._settings, self._cluster, self._shelf = settings, cluster, shelf
        self._application = "thrifty-" + re.sub(r"[^A-Za-z0-9_-]+", "-", name)
        self._handle: Any = None
        self._is_ready = False

    @property
    def ready(self) -> bool:
        """Whether a replica takes requests, or did."""
        return self._is_ready

    async def start(self) -> None:
        """Connect to Ray, or start it on this machine, and start the replicas; returns when the first one is ready.

        Raises ServerError with the reason where the cluster cannot be had, or the replicas cannot be started.
        """
        await asyncio.to_thread(self._connect)
        await self.deploy(whole=False)
        self._is_ready = True

    def _connect(self) -> None:
        for name, value in RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray
        from ray import serve

        quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        cluster = self._cluster
        try:
            if cluster.address is None:
                cores = max(os.cpu_count() or 1, cluster.threads * (cluster.most_replicas or cluster.replicas))
                ray.init("local", num_cpus=cores, object_store_memory=OBJECT_STORE, include_dashboard=False, **quiet)
            else:
                ray.init(cluster.address, **quiet)
            serve.start(proxy_location="Disabled")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ServerError(f"Ray at '{cluster.address or 'this machine'}' cannot be used: {error}") from error

    async def deploy(self, whole: bool = True) -> None:
        """Start the replicas anew, one after the other where they run already: each ends its answers first, while the
        others take new requests. Returns when all of them are ready, or the first where `whole` is false.

        Raises ServerError with the reason where they cannot be started.
        """
        await asyncio.to_thread(self._deploy)
        told = ""
        while True:
            status, message, running = await asyncio.to_thread(self._status)
            if status == "DEPLOY_FAILED":
                raise ServerError(f"the replicas cannot be started: {reason(message)}")
            if status == "RUNNING" or (running and not whole):
                return
            if message != told:
                told = message
                _LOG.info("waiting for the replicas%s", f": {message}" if message else "")
            await asyncio.sleep(POLL)

    def _deploy(self) -> None:
        from ray import serve

        deployment = serve.deployment(name=DEPLOYMENT, **self._options())(Replica)
        application = deployment.bind(self._shelf)
        target = serve.RunTarget(application, name=self._application, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        self._handle = handle.options(method_name="answer", stream=True)

    async def ask(self, call: HttpCall) -> AsyncGenerator[list[Message], None]:
        """See forwarding.Ask."""
        from ray.exceptions import (
            ActorDiedError,
            ActorUnavailableError,
            NodeDiedError,
            RayActorError,
            WorkerCrashedError,
        )
        from ray.serve.exceptions import BackPressureError

        lost = (ActorDiedError, ActorUnavailableError, NodeDiedError, RayActorError, WorkerCrashedError)
        batches = self._handle.remote(call)
        try:
            async for batch in batches:
                yield batch
        except (asyncio.CancelledError, GeneratorExit):
            batches.cancel()
            raise
        except lost as error:
            raise ReplicaLost(str(error).splitlines()[0]) from error
        except BackPressureError as error:
            raise QueueFullError(f"{self._waiting} requests wait for a replica already; ask again later") from error

    async def metrics(self) -> dict[str, str]:
        """What the replicas tell, without those that have ended; nothing where one does not tell in time."""
        if self._handle is None:
            return {}
        try:
            return dict(await self._of_all("metrics"))
        except TimeoutError:
            _LOG.warning("a replica did not tell its metrics within %g s", PATIENCE)
            return {}

    async def ask_all(self, call: HttpCall) -> list[tuple[int, bytes]]:
        """Status and body of what each replica answers, without those that have ended. Raises TimeoutError."""
        return await self._of_all("whole_answer", call)

    async def _of_all(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of each replica returns, without those that raise. Raises TimeoutError."""
        told = self._handle.broadcast(method, *arguments)
        answers = await told.results_async(timeout_s=PATIENCE, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def running(self) -> int:
        """How many replicas take requests."""
        if self._handle is None:
            return 0
        return (await asyncio.to_thread(self._status))[2]

    def _status(self) -> tuple[str, str, int]:
        """Of the application: its status by Ray's name, what Ray says of it, and how many replicas run."""
        from ray import serve

        application = serve.status().applications.get(self._application)
        if application is None:
            return "NOT_STARTED", "", 0
        replicas = application.deployments.get(DEPLOYMENT)
        running = 0 if replicas is None else int(replicas.replica_states.get("RUNNING", 0))
        return application.status.value, told_of(application), running

    def stop(self) -> None:
        """End the replicas, and Ray where it was started here."""
        import ray
        from ray import serve

        self._handle, self._is_ready = None, False
        if not ray.is_initialized():
            return
        if self._cluster.address is None:
            serve.shutdown()
        else:
            serve.delete(self._application)
        ray.shutdown()

    @property
    def _waiting(self) -> int:
        """Most requests that wait in front of the replicas, as all do for a moment; engines refuse what is too much."""
        cluster = self._cluster
        return max(LEAST_WAITING, (cluster.most_replicas or cluster.replicas) * (cluster.batch + cluster.queue))

    def _options(self) -> dict[str, Any]:
        """What Ray Serve is told about the deployment."""
        cluster = self._cluster
        resources: dict[str, Any] = {"num_cpus": cluster.threads}
        if cluster.memory is not None:
            resources["memory"] = cluster.memory
        return {
            **self._number(),
            "ray_actor_options": resources,
            "max_ongoing_requests": cluster.batch + cluster.queue + SPARE,
            "max_queued_requests": self._waiting,
            "graceful_shutdown_timeout_s": self._settings.drain_seconds,
            "graceful_shutdown_wait_loop_s": 0.5,
            "health_check_period_s": 5.0,
            "health_check_timeout_s": 30.0,
            "max_constructor_retry_count": 2,
            "user_config": {},
            "request_router_config": {
                "request_router_class": "thrifty.serving.cluster.routing:PrefixRequestRouter",
                "request_router_kwargs": {"routing": cluster.routing, "imbalance": cluster.imbalance},
            },
        }

    def _number(self) -> dict[str, Any]:
        """How many replicas: always the same, or by the load."""
        cluster = self._cluster
        if cluster.most_replicas is None or cluster.most_replicas == cluster.replicas:
            return {"num_replicas": cluster.replicas}
        return {
            "autoscaling_config": {
                "min_replicas": cluster.replicas,
                "max_replicas": cluster.most_replicas,
                "target_ongoing_requests": cluster.batch,
                "policy": {"policy_function": "thrifty.serving.cluster.scaling:policy"},
            }
        }


def told_of(application: Any) -> str:
    """What Ray says of an application. Its deployment's words come first: they have the replica's own error, while the
    application's only say that there was one.
    """
    replicas = application.deployments.get(DEPLOYMENT)
    return (replicas is not None and replicas.message) or application.message or ""


def reason(told: str) -> str:
    """The last line of what Ray says of a failure: the replica's own error, without the name of its class."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return re.sub(r"^thrifty\.[\w.]+: ", "", lines[-1]) if lines else "Ray gives no reason"
