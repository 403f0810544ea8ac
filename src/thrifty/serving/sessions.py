"""/v1/sessions: the conversations that go on from their own caches, listed, dropped, saved and restored."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from thrifty.serving.access.keys import key_of
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.service import Service, salt_of


def router(models: ModelShelf) -> APIRouter:
    """The endpoints. A client sees the sessions of its own key alone; ?model= says of which model, where there are
    several.
    """
    routes = APIRouter()

    async def present(model: str | None) -> Service | None:
        """A model where it is loaded. None is loaded for a look: it has no sessions then."""
        if models.named(model).ready:
            return await models.get(model)
        models.check_ready()
        return None

    @routes.get("/v1/sessions")
    async def sessions(http: Request, model: str | None = None) -> dict[str, Any]:
        """What is held for the client's conversations."""
        service = await present(model)
        held = [] if service is None else await service.engine.sessions(salt_of(key_of(http)))
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
        service = await present(model)
        if service is None or not await service.engine.drop_session(name, salt_of(key_of(http))):
            raise RequestError(f"there is no session '{name:.128}'", 404, code="session_not_found")
        return {"id": name, "object": "session", "deleted": True}

    async def place(model: str | None) -> tuple[Service, Path]:
        """A model, and the folder of its sessions."""
        service = await models.get(model)
        folder = models.settings.session_folder
        if folder is None:
            raise RequestError("sessions are not saved on this server: start it with --session-folder", 403)
        return service, folder / urllib.parse.quote(service.name, safe=" ")

    @routes.post("/v1/sessions/{name:path}/save")
    async def save(name: str, http: Request, model: str | None = None) -> dict[str, Any]:
        """Write one of them to the server's disk, to go on from after a restart."""
        service, folder = await place(model)
        await service.engine.save_session(name, folder, salt_of(key_of(http)))
        return {"id": name, "object": "session", "saved": True}

    @routes.post("/v1/sessions/{name:path}/restore")
    async def restore(name: str, http: Request, model: str | None = None) -> dict[str, Any]:
        """Read one back that was saved, in the place of the one of its name."""
        service, folder = await place(model)
        await service.engine.restore_session(name, folder, salt_of(key_of(http)))
        return {"id": name, "object": "session", "restored": True}

    return routes
