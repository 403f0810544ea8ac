"""The models of a server by the names that clients use, loaded when they are asked for."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from thrifty.errors import ThriftyError, nearest
from thrifty.serving.errors import RequestError
from thrifty.serving.memory_shares import MemoryShares
from thrifty.serving.metrics import Instruments, Metrics
from thrifty.serving.served_model import ModelSource, ServedModel
from thrifty.serving.service import Service
from thrifty.serving.settings import ServerError, ServerSettings

_LOG = logging.getLogger("thrifty.serving")


class ModelShelf:
    """Names, and the models behind them. `service = await models.get(name)` is how an endpoint begins.

    instruments: what is counted of all models. failure: why a model could not be loaded that had to be.
    """

    def __init__(
        self,
        settings: ServerSettings,
        sources: Sequence[ModelSource],
        *,
        memory: int | None = None,
        preload: bool = False,
    ) -> None:
        """memory: bytes for all models together, where the shelf is to divide them; None: every source has its own
        bound. preload: load all at the start (see `start`); requests are refused until then. Else a model is loaded
        when it is first asked for, and requests wait for it.

        Raises ServerError for a name that stands for two models.
        """
        self.settings = settings
        self.instruments = Instruments()
        self.failure: BaseException | None = None
        self._preload = preload
        self._starting = preload
        self._ending = asyncio.Event()
        self._models = [
            ServedModel(source, Metrics(source.name, self.instruments), settings.tighten) for source in sources
        ]
        self._services = _by_name(settings, self._models)
        self._shares = MemoryShares(memory, settings.model_room)
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def get(self, name: str | None) -> Service:
        """The model of a name, loaded; the task that asks holds it until it is over. None: the only one.

        Raises RequestError: 404 for an unknown name, 503 where it is not loaded in time, or cannot be.
        """
        service = self.named(name)
        service.served.hold()
        if not service.ready or service.served.name in self._loads:  # loaded, but its share of memory is not certain
            await self._wait_for(service.served)
        return service

    def named(self, name: str | None) -> Service:
        """The model of a name, loaded or not. Raises RequestError (404; 400 for None where there are several)."""
        if name is None:
            if len(self._models) > 1:
                raise RequestError("'model' is missing, and this server has several", 400, "model")
            return self._services[self._models[0].name]
        if name not in self._services:
            raise RequestError(
                f"the model '{name:.200}' is not served here. {nearest(name, self._services)}",
                404,
                "model",
                "model_not_found",
            )
        return self._services[name]

    async def add_adapter(self, base: str | None, name: str, folder: str | os.PathLike[str]) -> Service:
        """Serve a model with an adapter too, as "base:name". base: None for the only model.

        Raises RequestError for a name that is taken, and what `Engine.add_adapter` raises.
        """
        served = (await self.get(base)).served
        service = Service(self.settings, served, name)
        if service.name in self._services:
            raise RequestError(f"'{service.name}' is served already; unload it first, or use another name")
        await served.add_adapter(name, folder)
        self._services[service.name] = service
        return service

    async def remove_adapter(self, name: str) -> None:
        """Serve "base:name" no longer. Raises RequestError for what is no adapter, PromptError where one uses it."""
        service = self.named(name)
        if service.adapter is None:
            raise RequestError(f"'{name}' is a model, no adapter; only adapters can be unloaded")
        del self._services[name]
        try:
            await service.served.remove_adapter(service.adapter)
        except BaseException:
            self._services[name] = service
            raise

    def services(self) -> list[Service]:
        """All that clients may ask for: each model, and behind it its adapters."""
        return list(self._services.values())

    def check_ready(self) -> None:
        """Raise RequestError (503) where no request would be taken now."""
        for model in self._models:
            if (self._ending.is_set() or self._preload) and not model.ready:
                raise model.absent()

    async def start(self, failed: Callable[[], None]) -> None:
        """Load what has to be there from the start. failed: told where that is not possible (see `failure`)."""
        if not self._preload:
            return
        try:
            for model in self._models:
                await self._load(model)
            self._starting = False
        except Exception as error:
            self.failure = error
            failed()

    def end_all(self) -> None:
        """End every answer under way; those who wait for it, or for a model, are told that the server stops."""
        self._ending.set()
        for model in self._models:
            model.end_all()

    async def close(self) -> None:
        """End what runs and let all models go. Requests are refused from now on."""
        self.end_all()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        for model in self._models:
            await model.close()

    async def _wait_for(self, model: ServedModel) -> None:
        """Until a model is loaded. Raises RequestError (503) where that takes too long, or is not possible."""
        if self._ending.is_set() or self._starting:
            raise model.absent()
        loading = self._loads.get(model.name)
        if loading is None:
            loading = self._loads[model.name] = asyncio.create_task(self._load_on_demand(model))
            loading.add_done_callback(_looked_at)
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait((loading, ending), timeout=self.settings.load_seconds, return_when="FIRST_COMPLETED")
        finally:
            ending.cancel()
        if not loading.done():
            raise model.absent()
        loading.result()

    async def _load_on_demand(self, model: ServedModel) -> None:
        try:
            async with self._one_at_a_time:
                if self._ending.is_set():
                    raise model.absent()
                for other in self._models:  # an engine that an error stopped still holds its weights
                    await other.let_go_if_stopped()
                await self._load(model)
        except RequestError:
            raise
        except Exception as error:
            _LOG.error("%s could not be loaded: %s", model.name, error, exc_info=not isinstance(error, ThriftyError))
            raise RequestError(
                f"the model '{model.name}' could not be loaded; the server's log says why", 503, "model", "load_failed"
            ) from error
        finally:
            del self._loads[model.name]

    async def _load(self, model: ServedModel) -> None:
        """Load a model and divide the memory anew, with nothing changed but the shares where it fails."""
        loop = asyncio.get_running_loop()

        def fits(weights: int) -> None:
            """In the thread that loads."""
            if self._ending.is_set():
                raise model.absent()
            room = self._shares.make_room(model.name, weights, self._loaded())
            asyncio.run_coroutine_threadsafe(room, loop).result()

        try:
            await model.load(fits)
            await self._shares.make_good(model.name, model, self._loaded())
        except BaseException:
            await model.let_go()
            await self._shares.divide(self._loaded())
            raise

    def _loaded(self) -> list[ServedModel]:
        return [model for model in self._models if model.ready]


def _looked_at(task: asyncio.Task[None]) -> None:
    """Those who waited for a model may all be gone: nobody is warned of an error that none of them read."""
    if not task.cancelled():
        task.exception()


def _by_name(settings: ServerSettings, models: Sequence[ServedModel]) -> dict[str, Service]:
    services: dict[str, Service] = {}
    for model in models:
        for adapter in (None, *model.adapters):
            service = Service(settings, model, adapter)
            if service.name in services:
                raise ServerError(f"two models are named '{service.name}'; give each a name of its own")
            services[service.name] = service
    return services
