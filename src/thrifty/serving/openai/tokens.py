"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import StrictInt

from thrifty.engine.prompts import prompt_ids
from thrifty.serving.bodies.body import Body
from thrifty.serving.bodies.chat_messages import checked
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf


class TokenizeBody(Body):
    """A text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


class DetokenizeBody(Body):
    """Token ids."""

    model: str | None = None
    tokens: list[StrictInt]


def router(models: ModelShelf) -> APIRouter:
    """Both endpoints over the models of a server."""
    routes = APIRouter()

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        """The ids of a text, or of a conversation as the model reads it."""
        service = await models.get(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("give either prompt or messages", param="prompt")
        if body.messages is not None:
            ids = await service.encode_chat(checked(body.messages))
        else:
            ids = await service.encode(body.prompt) if body.prompt else []
        return {"tokens": ids, "count": len(ids), "max_model_len": service.engine.probe().context}

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, str]:
        """The text of some ids."""
        service = await models.get(body.model)
        if not body.tokens:
            return {"prompt": ""}
        ids = prompt_ids(body.tokens)
        size = service.model.config.vocabulary_size
        wrong = [token for token in ids if not 0 <= token < size]
        if wrong:
            raise RequestError(
                f"token id {wrong[0]} is outside this model's vocabulary, 0 to {size - 1}", param="tokens"
            )
        return {"prompt": service.model.require_tokenizer().decode(ids, skip_special=False)}

    return routes
