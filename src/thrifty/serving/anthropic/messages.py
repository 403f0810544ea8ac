"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API for texts and tools, whole or streamed."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from thrifty.serving.access.keys import key_of
from thrifty.serving.answers import STREAMED, StreamForm, answered, named_event, streamed, unless_gone, whole
from thrifty.serving.anthropic.answer import MessageAnswer
from thrifty.serving.anthropic.body import CountBody, MessageBody
from thrifty.serving.anthropic.errors import DOCUMENTED, error_body
from thrifty.serving.errors import described
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.service import Service
from thrifty.serving.tool_calls.blocks import Blocks
from thrifty.serving.tool_calls.calling import Calling

FORM = StreamForm(
    line=named_event,
    failed=lambda error: error_body(*described(error)),
    ping=named_event({"type": "ping"}),
    end=b"",
)


def router(models: ModelShelf) -> APIRouter:
    """Both endpoints over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/messages", responses=STREAMED | DOCUMENTED)
    async def messages(body: MessageBody, http: Request) -> Response:
        """Answer a conversation."""
        service = await models.get(body.model)
        calling = calling_of(body, service)
        prompt = await service.encode_chat(body.conversation(), tools=None if calling is None else calling.shown)
        service.check_length(len(prompt))  # before a grammar is compiled, which may take seconds
        sampling = body.sampling(None if calling is None else await service.compiled((calling.grammar, "tools")))
        handle = await service.submit(prompt, sampling, 1, body.thrifty, key_of(http))
        blocks = Blocks(None if calling is None else calling.readers(1)[0])
        answer = MessageAnswer(body, handle, blocks, service.model.require_tokenizer())
        if body.stream:
            keep_alive = service.settings.keep_alive_seconds
            return streamed(handle, service.metrics, answer.first(), answer.of, answer.last, keep_alive, FORM)
        await unless_gone(http, whole(handle, service.metrics, blocks.push if calling is not None else None))
        return answered(answer.whole(), [handle])

    @routes.post("/v1/messages/count_tokens", responses=DOCUMENTED)
    async def count_tokens(body: CountBody) -> dict[str, int]:
        """The tokens that a conversation has as a prompt, those of its tools among them."""
        service = await models.get(body.model)
        calling = calling_of(body, service)
        prompt = await service.encode_chat(body.conversation(), tools=None if calling is None else calling.shown)
        return {"input_tokens": len(prompt)}

    return routes


def calling_of(body: CountBody, service: Service) -> Calling | None:
    """The tools of a request in the model's format; None where its answer is to be text. Raises RequestError."""
    offer = body.offer
    return None if offer is None else Calling(offer, service.model.require_tokenizer())
