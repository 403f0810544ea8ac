"""GET /v1/models, /health, /metrics, /version."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from thrifty.serving.errors import RequestError, response
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.service import Service
from thrifty.version import VERSION


def router(models: ModelShelf) -> APIRouter:
    """The endpoints over the models of a server."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def all_models() -> dict[str, Any]:
        """What is served: models, loaded or not, and their adapters."""
        return {"object": "list", "data": [_described(service) for service in models.services()]}

    @routes.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return _described(models.named(name))

    @routes.get("/health")
    async def health() -> Response:
        """200 once requests are taken, 503 before."""
        try:
            models.check_ready()
        except RequestError as error:
            return response(str(error), 503, code=error.code, retry_after=1)
        return JSONResponse({"status": "ok"})

    @routes.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus' text format. In a thread: what an engine holds is read between two of its steps."""
        return Response(models.instruments.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """Thrifty's version."""
        return {"version": VERSION}

    return routes


def _described(service: Service) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": service.name,
        "object": "model",
        "created": service.served.created,
        "owned_by": "thrifty",
        "loaded": service.ready,
    }
    if service.adapter is not None:
        entry["parent"] = service.served.name
    return entry | ({"max_model_len": service.engine.probe().context} if service.ready else {})
