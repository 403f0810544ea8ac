"""The front: one address before all replicas, with the keys, limits and page of a single server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from thrifty.serving import errors
from thrifty.serving.access.body_limits import BodyLimits
from thrifty.serving.access.keys import Keys
from thrifty.serving.anthropic.errors import AnthropicErrors
from thrifty.serving.cluster.deployment import Deployment
from thrifty.serving.cluster.forwarding import Forwarding
from thrifty.serving.cluster.merged_metrics import MergedMetrics, cluster_families, page
from thrifty.serving.errors import RequestError
from thrifty.serving.page import routes
from thrifty.serving.settings import ServerSettings
from thrifty.version import VERSION

_LOG = logging.getLogger("thrifty.serving")


class Front:
    """The application and what it stands before. failed: told when the replicas cannot be started (see `failure`)."""

    def __init__(
        self, settings: ServerSettings, deployment: Deployment, retries: int, failed: Callable[[], None]
    ) -> None:
        self._settings, self._deployment, self._failed = settings, deployment, failed
        self._metrics = MergedMetrics()
        self._loading = f"'{deployment.name}' is being loaded; ask again soon"
        self.failure: BaseException | None = None
        self.forwarding = Forwarding(deployment.ask, retries)
        self.app = self._create()

    async def restart(self) -> None:
        """Start the replicas anew, one after the other. What goes wrong is logged: those that run go on."""
        _LOG.info("the replicas are restarted, one after the other")
        try:
            await self._deployment.deploy()
        except Exception as error:
            _LOG.error("the replicas were not restarted: %s", error)
        else:
            _LOG.info("the replicas were restarted")

    def _create(self) -> FastAPI:
        app = FastAPI(title="Thrifty", version=VERSION, lifespan=self._life, openapi_url=None)
        app.include_router(self._own_endpoints())
        app.include_router(routes.router())
        app.router.routes.append(Mount("/", self._forward))
        errors.install(app)
        app.add_middleware(BodyLimits, settings=self._settings)
        app.add_middleware(Keys, settings=self._settings)
        app.add_middleware(AnthropicErrors)  # the last one that is added sees a request first
        return app

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._deployment.ready:
            raise RequestError(self._loading, 503, code="loading")
        await self.forwarding(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        tasks = {asyncio.create_task(self._start())}

        def restart() -> None:
            if all(task.done() for task in tasks):
                tasks.clear()
                tasks.add(asyncio.create_task(self.restart()))

        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError, ValueError):  # signals reach the main thread alone
            loop.add_signal_handler(signal.SIGHUP, restart)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self._deployment.stop)

    async def _start(self) -> None:
        try:
            await self._deployment.start()
            _LOG.info("%s is ready on %d of its replicas", self._deployment.name, await self._deployment.running())
        except Exception as error:
            self.failure = error
            self._failed()

    def _own_endpoints(self) -> APIRouter:
        """What no single replica can answer."""
        own = APIRouter()

        @own.get("/health")
        async def health() -> Response:
            """200 once a replica takes requests, 503 before."""
            replicas = await self._deployment.running()
            if not replicas:
                return errors.response(self._loading, 503, code="loading", retry_after=1)
            return JSONResponse({"status": "ok", "replicas": replicas})

        @own.get("/metrics", response_class=PlainTextResponse)
        async def metrics() -> Response:
            """Prometheus' text format, over all replicas."""
            told = await self._deployment.metrics()
            self._metrics.update(told)
            forwarding = self.forwarding
            own = cluster_families(len(told), forwarding.retried, forwarding.lost)
            return Response(page([*self._metrics.families(), *own]), media_type=CONTENT_TYPE_LATEST)

        @own.get("/v1/sessions")
        async def sessions() -> None:
            """Refused: each replica knows its own alone, and one of them would answer for all."""
            told = "sessions of several replicas are not listed; requests that name one reach the replica that has it"
            raise RequestError(told, 400, code="not_listed")

        return own
