"""POST /v1/embeddings: the mean of a text's final hidden states in the served model, of length 1."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import StrictInt

from thrifty.arrays import Floats
from thrifty.serving.answers import unless_gone
from thrifty.serving.bodies.sampling import Body
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.service import Service


class EmbeddingBody(Body):
    """One or several texts, or their token ids."""

    model: str
    input: str | list[StrictInt] | list[str] | list[list[StrictInt]]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """All of them, each a text or token ids."""
        given: Any = self.input
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


async def embedded(service: Service, texts: list[str | list[int]], param: str) -> tuple[Floats, int]:
    """Embeddings fp32 [texts, hidden], each of length 1, and the tokens that were read. param: the field they came in.

    One after the other: each has the whole machine, and others' answers go on between its chunks.
    """
    if service.adapter is not None:
        raise RequestError(
            f"embeddings are the model's own; ask '{service.served.name}' instead of '{service.name}'", param="model"
        )
    if not 1 <= len(texts) <= service.settings.texts:
        raise RequestError(f"{param} holds {len(texts)} texts; give 1 to {service.settings.texts}", param=param)
    encoded = [service.model.checked(await service.encode(text)) for text in texts]
    for tokens in encoded:
        service.check_length(len(tokens))
    rows = []
    for tokens in encoded:
        rows.append(_unit(await service.engine.mean_hidden(tokens)))
        service.metrics.read(len(tokens))
    return np.stack(rows), sum(map(len, encoded))


def _unit(vector: Floats) -> Floats:
    length = float(np.linalg.norm(vector))
    unit: Floats = vector / np.float32(length) if length > 0 else vector
    return unit


def router(models: ModelShelf) -> APIRouter:
    """The endpoint over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody, http: Request) -> Response:
        """Texts as vectors."""
        service = await models.get(body.model)
        done = await unless_gone(http, embedded(service, body.inputs, "input"))
        if done is None:
            return Response(status_code=499)
        vectors, tokens = done
        data = [
            {"object": "embedding", "index": index, "embedding": _shown(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})

    return routes


def _shown(vector: Floats, form: str) -> list[float] | str:
    """Numbers, or little-endian fp32 in base64."""
    if form == "float":
        return [float(value) for value in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
