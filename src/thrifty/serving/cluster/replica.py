"""One replica: the whole application of one machine, asked through Ray instead of a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from starlette.types import Message

from thrifty.engine.engine import Engine
from thrifty.serving.app import create_app
from thrifty.serving.cluster.calls import HttpCall, answered
from thrifty.serving.service import Service
from thrifty.serving.settings import ServerSettings

POLL = 0.05
"""Seconds between two looks at whether the model is loaded."""


class Replica:
    """An actor of Ray Serve's deployment. settings: as the front's. open_engine: opens the model, here; it travels by
    pickle.

    Raises what loading the model raises; Ray tells the front.
    """

    def __init__(self, settings: ServerSettings, open_engine: Callable[[], Engine]) -> None:
        self._service = Service(settings)
        self._app = create_app(self._service, open_engine, failed=lambda: None)
        self._life = contextlib.AsyncExitStack()
        self._is_loaded = False

    async def reconfigure(self, _: object) -> None:
        """Load the model. Ray calls it once the constructor is done, and takes requests when it returns."""
        if self._is_loaded:
            return
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))
        while not self._service.ready:
            if self._service.failure is not None:
                raise self._service.failure
            await asyncio.sleep(POLL)
        self._is_loaded = True

    async def answer(self, call: HttpCall) -> AsyncGenerator[list[Message], None]:
        """The ASGI messages that answer a request, those that are there at a time together."""
        async with contextlib.aclosing(answered(self._app, call)) as batches:
            async for batch in batches:
                yield batch

    async def metrics(self) -> tuple[str, str]:
        """This replica's name, and what its /metrics tells."""
        from ray import serve

        name = serve.get_replica_context().replica_id.unique_id
        text = await asyncio.to_thread(self._service.metrics.text)
        return name, text.decode()

    async def check_health(self) -> None:
        """Raise where the engine's thread has ended: Ray starts another replica then."""
        await self._service.engine.usage()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Requests that wait here, and the share of the memory budget that is in use (0 without a budget)."""
        usage, budget = await self._service.engine.usage(), self._service.engine.probe().budget
        return {"waiting": float(usage.waiting), "memory": usage.current / budget if budget else 0.0}

    async def __del__(self) -> None:
        """Ray calls it when no request is left: let the model go."""
        await self._life.aclose()
