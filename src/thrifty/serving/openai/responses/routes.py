"""POST /v1/responses."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from thrifty.serving.access.keys import key_of
from thrifty.serving.answers import STREAMED, answered, streamed, unless_gone, whole
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.openai.responses.answer import Answer
from thrifty.serving.openai.responses.body import ResponseBody
from thrifty.serving.openai.responses.events import ResponseEvents, response_form
from thrifty.serving.tool_calls.blocks import Blocks
from thrifty.serving.tool_calls.calling import Calling


def router(models: ModelShelf) -> APIRouter:
    """The endpoint over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/responses", responses=STREAMED)
    async def responses(body: ResponseBody, http: Request) -> Response:
        """Answer a text or a conversation."""
        service = await models.get(body.model)
        offer = body.offer
        calling = None if offer is None else Calling(offer, service.model.require_tokenizer())
        prompt = await service.encode_chat(body.messages(), tools=None if calling is None else calling.shown)
        service.check_length(len(prompt))  # before a grammar is compiled, which may take seconds
        form = body.form if calling is None else (calling.grammar, "tools")
        sampling = body.sampling(await service.compiled(form))
        handle = await service.submit(prompt, sampling, 1, body.thrifty, key_of(http))
        blocks = Blocks(None if calling is None else calling.readers(1)[0])
        answer = Answer(body, handle, blocks)
        if body.stream:
            events = ResponseEvents(answer)
            keep_alive = service.settings.keep_alive_seconds
            form_of_events = response_form(events)
            return streamed(handle, service.metrics, events.first(), events.of, events.last, keep_alive, form_of_events)
        await unless_gone(http, whole(handle, service.metrics, blocks.push if calling is not None else None))
        blocks.end(handle.samples[0])
        return answered(answer.shown(answer.status), [handle])

    return routes
