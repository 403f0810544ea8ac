"""One model of the server: how it is opened, its engine while it is loaded, and who uses it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thrifty.engine.async_handle import AsyncHandle
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.errors import ThriftyError
from thrifty.serving.errors import RequestError
from thrifty.serving.metrics import Metrics
from thrifty.serving.tightening.ladder import Ladder
from thrifty.serving.tightening.tightening import Tightening
from thrifty.storage.heap import hand_back

if TYPE_CHECKING:
    from thrifty.models.model import Model

_LOG = logging.getLogger("thrifty.serving")

Fits = Callable[[int], None]
"""Told the bytes of a model's weights before any of them is converted; what it raises ends the loading."""


@dataclass(frozen=True)
class ModelSource:
    """A model that can be served. name: what clients ask for. open: loads it, in a thread. adapters: name → a folder
    that PEFT wrote.
    """

    name: str
    open: Callable[[Fits], Engine]
    adapters: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)


class ServedModel:
    """A source, and the engine over it while there is one. metrics: what is counted of it. adapters: those that the
    engine has whenever there is one. Of these, one that a request loaded and that is damaged since is missing: its own
    requests are refused, and no others.

    A task that asks for the model holds it until the task is over: a request is one task, its stream included.
    """

    def __init__(self, source: ModelSource, metrics: Metrics, ladder: Ladder | None = None) -> None:
        """ladder: of stronger recipes while its engine is short, None where the operator wants none."""
        self.name = source.name
        self.adapters = dict(source.adapters)
        self._first_adapters = frozenset(source.adapters)  # the operator's
        self.metrics = metrics
        self.created = int(time.time())
        self.used = time.monotonic()
        self._open = source.open
        self._engine: AsyncEngine | None = None
        self._ladder = ladder
        self.tightening: Tightening | None = None
        self._ending = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._handles: weakref.WeakSet[AsyncHandle] = weakref.WeakSet()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded, and its engine runs."""
        return self._engine is not None and self._engine.failure is None

    @property
    def stopped(self) -> bool:
        """Whether an error stopped the engine."""
        return self._engine is not None and self._engine.failure is not None

    @property
    def users(self) -> int:
        """Requests that use the model now, or wait for it."""
        return len(self._tasks)

    @property
    def engine(self) -> AsyncEngine:
        """The engine. Raises RequestError (503) while the model is loaded, and once the server stops."""
        if self._engine is None:
            raise self.absent()
        return self._engine

    @property
    def model(self) -> Model:
        """The loaded model. Raises as `engine` does."""
        return self.engine.engine.model

    @property
    def weights(self) -> int:
        """Bytes of the loaded model's weights."""
        return self.engine.probe().weights

    @property
    def budget(self) -> int:
        """Bytes that the engine may hold; 0 without a bound."""
        return self.engine.probe().budget or 0

    def absent(self) -> RequestError:
        """Why there is no engine now."""
        if self._ending:
            return RequestError("the server is shutting down", 503, code="shutting_down", retry_after=5)
        return RequestError(
            f"the model '{self.name}' is being loaded; ask again soon", 503, code="loading", retry_after=5
        )

    def hold(self) -> None:
        """The task that calls uses the model until it is over."""
        task = asyncio.current_task()
        if task is not None and task not in self._tasks:
            self._tasks.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self.used = time.monotonic()

    async def load(self, fits: Fits = lambda weights: None) -> None:
        """Open the engine and its adapters in a thread of its own. Raises what that raises."""
        started = time.perf_counter()
        engine = await asyncio.to_thread(self._opened, fits)
        self._engine = AsyncEngine(engine)
        if self._ladder is not None:
            self.tightening = Tightening(self._ladder, self._engine, self.metrics.at_rung)
        self.metrics.watch(engine)
        _LOG.info("%s is ready after %.1f s", self.name, time.perf_counter() - started)

    def _opened(self, fits: Fits) -> Engine:
        engine = self._open(fits)
        try:
            for cache in () if self._ladder is None else self._ladder.rungs:
                engine.check_cache(cache)
            for name, folder in list(self.adapters.items()):
                try:
                    engine.add_adapter(name, folder)
                except (ThriftyError, OSError) as error:
                    if name in self._first_adapters:
                        raise
                    _LOG.error("%s has no adapter %s any more, which a request had loaded: %s", self.name, name, error)
        except BaseException:
            engine.close()
            raise
        return engine

    async def add_adapter(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Have one more adapter, whenever the model is loaded. Raises what `Engine.add_adapter` raises."""
        await asyncio.to_thread(self.engine.engine.add_adapter, name, folder)
        self.adapters[name] = folder

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter. Raises PromptError where a request uses it."""
        if self._engine is not None and name in self._engine.engine.adapters:
            await asyncio.to_thread(self._engine.engine.remove_adapter, name)
        del self.adapters[name]

    async def resize(self, nbytes: int) -> int:
        """Give the engine another budget, in bytes; returns the one that it has then (see `Engine.resize_memory`)."""
        return await self.engine.resize_memory(nbytes)

    async def let_go_if_stopped(self) -> None:
        """Let an engine go that an error stopped: it is opened again when it is asked for."""
        if self._engine is not None and self.stopped:
            _LOG.error("the engine of %s stopped and is let go", self.name, exc_info=self._engine.failure)
            await self.let_go()

    async def let_go(self) -> None:
        """Close the engine and give its memory back, weights included."""
        engine = self._taken()
        if engine is None:
            return
        self.metrics.forget()
        await engine.close()
        del engine
        await asyncio.to_thread(_give_back)
        _LOG.info("%s was let go", self.name)

    def _taken(self) -> AsyncEngine | None:
        """The engine, which is this model's no longer."""
        tightening, self.tightening = self.tightening, None
        if tightening is not None:
            tightening.close()
        engine, self._engine = self._engine, None
        return engine

    def track(self, handle: AsyncHandle) -> None:
        """A request that `end_all` is to end."""
        self._handles.add(handle)

    def end_all(self) -> None:
        """End every answer under way; those who wait for it are told that the server stops."""
        self._ending = True
        for handle in list(self._handles):
            handle.cancel()

    async def close(self) -> None:
        """End what runs and let the model go, for good."""
        self._ending = True
        engine = self._taken()
        if engine is not None:
            await engine.close()


def _give_back() -> None:
    """Weights lie in circles of objects: they go when those are collected."""
    gc.collect()
    hand_back()
