"""The web application: endpoints, errors, limits, and the models' life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI

from thrifty.serving import errors, sessions, status
from thrifty.serving.access.body_limits import BodyLimits
from thrifty.serving.access.keys import Keys
from thrifty.serving.anthropic import messages
from thrifty.serving.anthropic.errors import AnthropicErrors
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.openai import chat_completions, completions, embeddings, lora_adapters, rerank, tokens
from thrifty.serving.openai.responses import routes as responses
from thrifty.serving.page import routes as page
from thrifty.serving.tracing import TraceContext, otlp_spans
from thrifty.version import VERSION

ENDPOINTS = (
    chat_completions, completions, responses, messages, embeddings, rerank, tokens, lora_adapters, sessions,
    status,
)  # fmt: skip


def create_app(models: ModelShelf, failed: Callable[[], None]) -> FastAPI:
    """The application. failed: told where a model that has to be there from the start cannot be loaded (see
    `ModelShelf.failure`).
    """

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(models.start(failed))
        try:
            yield
        finally:
            await loading
            await models.close()
            if models.instruments.spans is not None:
                await asyncio.to_thread(models.instruments.spans.close)

    app = FastAPI(
        title="Thrifty", version=VERSION, lifespan=life, docs_url=None, redoc_url=None, responses=errors.DOCUMENTED
    )
    for module in ENDPOINTS:
        app.include_router(module.router(models))
    app.include_router(page.router())
    errors.install(app)
    app.add_middleware(BodyLimits, settings=models.settings)
    app.add_middleware(Keys, settings=models.settings)
    if models.settings.traces:
        models.instruments.spans = models.instruments.spans or otlp_spans()
        app.add_middleware(TraceContext)
    app.add_middleware(AnthropicErrors)  # the last one that is added sees a request first
    return app
