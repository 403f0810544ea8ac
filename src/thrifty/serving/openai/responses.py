"""POST /v1/responses: OpenAI's Responses API for texts, whole or streamed. Nothing is stored."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StrictBool, StrictInt

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.async_handle import AsyncHandle
from thrifty.serving.access.keys import key_of
from thrifty.serving.answers import STREAMED, streamed, unless_gone, whole
from thrifty.serving.bodies.chat_messages import checked, text_of
from thrifty.serving.bodies.sampling import Body, Extensions
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.openai.response_events import ResponseEvents, response_form
from thrifty.serving.service import Service

PARTS = ("input_text", "output_text", "text")


class TextFormat(Body):
    """Plain text."""

    type: Literal["text"] = "text"


class TextOptions(Body):
    """How the text is to look."""

    format: TextFormat = Field(default_factory=TextFormat)


class ResponseBody(Body):
    """What a response may ask for. metadata is given back."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: StrictInt | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: StrictBool = False
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    text: TextOptions = Field(default_factory=TextOptions)
    truncation: Literal["disabled"] | None = None
    user: str | None = None
    thrifty: Extensions = Field(default_factory=Extensions)

    def messages(self) -> list[dict[str, Any]]:
        """The instructions and the input as a conversation. Raises RequestError for items that are no messages."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        if not self.input:
            raise RequestError("input is empty; it needs at least 1 message", param="input")
        return [*first, *(_message(item, f"input.{index}") for index, item in enumerate(self.input))]

    def sampling(self) -> SamplingParameters:
        """As the engine takes them."""
        chosen = {} if self.top_p is None else {"top_p": self.top_p}
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParameters.of(temperature=temperature, max_tokens=self.max_output_tokens, **chosen)


def _message(item: dict[str, Any], place: str) -> dict[str, Any]:
    """A message of the input, as chat completions have it. An item of an earlier answer has an id and a status too."""
    if item.get("type", "message") != "message":
        raise RequestError(f"'{place}.type' is {item['type']!r:.60}; this server takes messages", param=f"{place}.type")
    given = {name: value for name, value in item.items() if name not in ("type", "id", "status")}
    given["content"] = text_of(given.get("content"), f"{place}.content", PARTS)
    return checked([given], place)[0]


class ResponseAnswer:
    """One response in the shape that clients know."""

    def __init__(self, service: Service, body: ResponseBody, handle: AsyncHandle) -> None:
        self.handle, self._body = handle, body
        self._created = int(time.time())
        self.message_id = f"msg_{handle.identity}"
        self._model = service.name

    def shown(self, status: str) -> dict[str, Any]:
        """The response now. status: "in_progress", "completed", "incomplete" or "failed"."""
        body, over = self._body, status in ("completed", "incomplete")
        return {
            "id": f"resp_{self.handle.identity}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._model,
            "output": [self.message(status, [self.part(self.text)])] if over else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._usage() if over else None,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    @property
    def text(self) -> str:
        """What was answered so far."""
        return self.handle.samples[0].text

    @property
    def status(self) -> str:
        """How it ended."""
        return "incomplete" if self.handle.samples[0].finish_reason == "length" else "completed"

    def message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The only item of the output."""
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        """The only part of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _usage(self) -> dict[str, Any]:
        used = self.handle.usage
        return {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": used.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.generated_tokens,
        }


def router(models: ModelShelf) -> APIRouter:
    """The endpoint over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/responses", responses=STREAMED)
    async def responses(body: ResponseBody, http: Request) -> Response:
        """Answer a text or a conversation."""
        service = await models.get(body.model)
        prompt = await service.encode_chat(body.messages())
        handle = await service.submit(prompt, body.sampling(), 1, body.thrifty, key_of(http))
        answer = ResponseAnswer(service, body, handle)
        if body.stream:
            events = ResponseEvents(answer)
            keep_alive = service.settings.keep_alive_seconds
            form = response_form(events)
            return streamed(handle, service.metrics, events.first(), events.of, events.last, keep_alive, form)
        await unless_gone(http, whole(handle, service.metrics))
        return JSONResponse(answer.shown(answer.status))

    return routes
