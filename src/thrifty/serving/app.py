"""The web application: endpoints, errors, limits, and the model's life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI

from thrifty.engine.engine import Engine
from thrifty.serving import errors, sessions, status
from thrifty.serving.access.body_limits import BodyLimits
from thrifty.serving.access.keys import Keys
from thrifty.serving.anthropic import messages
from thrifty.serving.anthropic.errors import AnthropicErrors
from thrifty.serving.openai import chat_completions, completions, embeddings, rerank, responses, tokens
from thrifty.serving.page import routes as page
from thrifty.serving.service import Service
from thrifty.version import VERSION

ENDPOINTS = (
    chat_completions, completions, responses, messages, embeddings, rerank, tokens, sessions, status,
)  # fmt: skip


def create_app(service: Service, open_engine: Callable[[], Engine], failed: Callable[[], None]) -> FastAPI:
    """The application. open_engine: loads the model, in a thread, once the server listens. failed: told when that
    raised (see `Service.failure`).
    """

    async def load() -> None:
        try:
            await service.load(open_engine)
        except Exception:  # kept as the service's failure
            failed()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            await loading
            await service.close()

    app = FastAPI(
        title="Thrifty", version=VERSION, lifespan=life, docs_url=None, redoc_url=None, responses=errors.DOCUMENTED
    )
    for module in ENDPOINTS:
        app.include_router(module.router(service))
    app.include_router(page.router())
    errors.install(app)
    app.add_middleware(BodyLimits, settings=service.settings)
    app.add_middleware(Keys, settings=service.settings)
    app.add_middleware(AnthropicErrors)  # the last one that is added sees a request first
    return app
