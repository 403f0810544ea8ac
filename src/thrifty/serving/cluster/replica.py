"""One replica: the whole application of one machine, asked through Ray instead of a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from starlette.types import Message

from thrifty.engine.asynchronous import AsyncEngine
from thrifty.serving.app import create_app
from thrifty.serving.cluster.calls import HttpCall, answered
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf

POLL = 0.05
"""Seconds between two looks at whether all is loaded that has to be."""


class Replica:
    """An actor of Ray Serve's deployment. shelf: makes the models of this replica; it travels by pickle.

    Raises what loading a model raises that has to be there; Ray tells the front.
    """

    def __init__(self, shelf: Callable[[], ModelShelf]) -> None:
        self._models = shelf()
        self._app = create_app(self._models, failed=lambda: None)
        self._life = contextlib.AsyncExitStack()
        self._is_loaded = False

    async def reconfigure(self, _: object) -> None:
        """Load what has to be there. Ray calls it once the constructor is done, and takes requests when it returns."""
        if self._is_loaded:
            return
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))
        while not self._is_ready():
            if self._models.failure is not None:
                raise self._models.failure
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
        text = await asyncio.to_thread(self._models.instruments.text)
        return name, text.decode()

    async def check_health(self) -> None:
        """Raise where an engine's thread has ended, or a model is gone that has to be there: Ray starts another replica
        then.
        """
        self._models.check_ready()
        for engine in self._engines():
            await engine.usage()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Requests that wait here, and the share of the memory budget that is in use (0 without a budget)."""
        waiting, held, bound = 0, 0, 0
        for engine in self._engines():
            usage, budget = await engine.usage(), engine.probe().budget
            waiting += usage.waiting
            held, bound = (held + usage.current, bound + budget) if budget else (held, bound)
        return {"waiting": float(waiting), "memory": held / bound if bound else 0.0}

    def _is_ready(self) -> bool:
        try:
            self._models.check_ready()
        except RequestError:
            return False
        return True

    def _engines(self) -> list[AsyncEngine]:
        """Of the models that are loaded now."""
        return [service.engine for service in self._models.services() if service.ready and service.adapter is None]

    async def __del__(self) -> None:
        """Ray calls it when no request is left: let the model go."""
        await self._life.aclose()
