"""GET /v1/sessions, DELETE /v1/sessions/NAME: the conversations that go on from their own caches."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from thrifty.serving.access.keys import key_of
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.service import salt_of


def router(models: ModelShelf) -> APIRouter:
    """Both endpoints. A client sees the sessions of its own key alone; ?model= says of which model, where there are
    several.
    """
    routes = APIRouter()

    @routes.get("/v1/sessions")
    async def sessions(http: Request, model: str | None = None) -> dict[str, Any]:
        """What is held for the client's conversations."""
        service = await models.get(model)
        held = await service.engine.sessions(salt_of(key_of(http)))
        data = [
            {
                "id": facts.name,
                "object": "session",
                "tokens": facts.tokens,
                "turns": facts.turns,
                "memory_bytes": facts.memory,
                "disk_bytes": facts.disk,
                "busy": facts.busy,
            }
            for facts in held
        ]
        return {"object": "list", "data": data}

    @routes.delete("/v1/sessions/{name:path}")
    async def drop(name: str, http: Request, model: str | None = None) -> dict[str, Any]:
        """Forget one of them."""
        service = await models.get(model)
        if not await service.engine.drop_session(name, salt_of(key_of(http))):
            raise RequestError(f"there is no session '{name:.128}'", 404, code="session_not_found")
        return {"id": name, "object": "session", "deleted": True}

    return routes
