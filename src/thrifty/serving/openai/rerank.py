"""POST /v1/rerank: documents by the cosine of their embeddings to the query's.

The served model is no cross-encoder: a score says how alike two texts are to it, not whether one answers the other.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StrictBool, StrictInt

from thrifty.serving.answers import unless_gone
from thrifty.serving.bodies.sampling import Body
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.openai.embeddings import embedded


class TextDocument(Body):
    """A document as an object."""

    text: str


class RerankBody(Body):
    """A query, and documents to be put in order. top_n: how many are wanted; None: all."""

    model: str
    query: str
    documents: list[str | TextDocument] = Field(min_length=1)
    top_n: StrictInt | None = Field(default=None, ge=1)
    return_documents: StrictBool = True

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


def router(models: ModelShelf) -> APIRouter:
    """The endpoint over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/rerank")
    async def rerank(body: RerankBody, http: Request) -> Response:
        """Documents, the most alike to the query first."""
        service = await models.get(body.model)
        texts = body.texts
        done = await unless_gone(http, embedded(service, [body.query, *texts], "documents"))
        if done is None:
            return Response(status_code=499)
        vectors, tokens = done
        scores = vectors[1:] @ vectors[0]
        order = sorted(range(len(texts)), key=lambda index: (-float(scores[index]), index))
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": float(scores[index])}
            | ({"document": {"text": texts[index]}} if body.return_documents else {})
            for index in order[: body.top_n]
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        identity = f"rerank-{os.urandom(8).hex()}"
        return JSONResponse({"id": identity, "model": body.model, "usage": usage, "results": results})

    return routes
