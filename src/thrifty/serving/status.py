"""GET /v1/models, /health, /metrics, /version."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from thrifty.serving.errors import RequestError, response
from thrifty.serving.service import Service
from thrifty.version import VERSION


def router(service: Service) -> APIRouter:
    """The endpoints over a service."""
    routes = APIRouter()

    def described() -> dict[str, Any]:
        entry: dict[str, Any] = {
            "id": service.settings.model,
            "object": "model",
            "created": service.created,
            "owned_by": "thrifty",
        }
        return entry | ({"max_model_len": service.engine.probe().context} if service.ready else {})

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": [described()]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        service.check_model(name)
        return described()

    @routes.get("/health")
    async def health() -> Response:
        """200 once requests are taken, 503 before."""
        try:
            _ = service.engine
        except RequestError as error:
            return response(str(error), 503, code=error.code, retry_after=1)
        return JSONResponse({"status": "ok"})

    @routes.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus' text format. In a thread: what the engine holds is read between two of its steps."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """Thrifty's version."""
        return {"version": VERSION}

    return routes
