"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them, for the folders of one place alone."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from pydantic import Field

from thrifty.errors import CheckpointError, nearest
from thrifty.serving.bodies.body import Body
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf

NAME = r"^[a-zA-Z0-9_.\-]{1,64}$"


class LoadBody(Body):
    """An adapter to be served. model: the one it is for, where there are several. lora_path: a folder's name."""

    lora_name: str = Field(pattern=NAME)
    lora_path: str
    model: str | None = None


class UnloadBody(Body):
    """An adapter by the name that clients ask for, "base:adapter"."""

    lora_name: str


def router(models: ModelShelf) -> APIRouter:
    """Both endpoints, where the operator named a folder of adapters; none otherwise."""
    routes = APIRouter()
    place = models.settings.adapter_folder
    if place is None:
        return routes

    @routes.post("/v1/load_lora_adapter")
    async def load_lora_adapter(body: LoadBody) -> dict[str, str]:
        """Serve an adapter from now on."""
        folder = adapter_in(place, body.lora_path)
        try:
            service = await models.add_adapter(body.model, body.lora_name, folder)
        except CheckpointError as error:
            told = str(error).replace(str(folder), body.lora_path)  # where it lies is not the client's business
            raise RequestError(told, param="lora_path") from error
        return {"id": service.name, "parent": service.served.name}

    @routes.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(body: UnloadBody) -> dict[str, str]:
        """Serve it no longer."""
        await models.remove_adapter(body.lora_name)
        return {"id": body.lora_name}

    return routes


def adapter_in(place: Path, name: str) -> Path:
    """The folder of that name in the operator's. Raises RequestError where there is none: a request names a folder and
    never a path.
    """
    folders = {entry.name: entry for entry in place.iterdir() if entry.is_dir()} if place.is_dir() else {}
    if name not in folders:
        raise RequestError(f"there is no adapter '{name:.200}' here. {nearest(name, folders)}", 404, "lora_path")
    return folders[name]
