"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictBool, StrictInt

from thrifty.engine.answer import Event, Sample
from thrifty.engine.async_handle import AsyncHandle
from thrifty.serving.access.keys import key_of
from thrifty.serving.answers import STREAMED, answered, streamed, unless_gone, usage_of, whole
from thrifty.serving.bodies.body import Body
from thrifty.serving.bodies.chat_messages import checked
from thrifty.serving.bodies.sampling import SamplingBody
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.openai import logprobs as shown
from thrifty.serving.replay import replay_of
from thrifty.serving.service import Service
from thrifty.serving.tool_calls.calling import Calling
from thrifty.serving.tool_calls.offer import FunctionBody, FunctionName, Offer, offer_of
from thrifty.serving.tool_calls.reading import CallReader


class ToolBody(Body):
    """A tool: functions only."""

    type: Literal["function"]
    function: FunctionBody


class NamedChoice(Body):
    """The function that has to be called."""

    type: Literal["function"]
    function: FunctionName


class ChatBody(SamplingBody):
    """What a chat completion may ask for."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool = False
    top_logprobs: StrictInt | None = None
    tools: list[ToolBody] | None = Field(default=None, min_length=1)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None: as many as fit. Raises RequestError where both fields disagree."""
        new, old = self.max_completion_tokens, self.max_tokens
        if new is not None and old is not None and new != old:
            raise RequestError(
                f"max_completion_tokens is {new} and max_tokens {old}; give one", param="max_completion_tokens"
            )
        return old if new is None else new

    @property
    def alternatives(self) -> int | None:
        """How many of them go with each token; None: no log-probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs = true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offer(self) -> Offer | None:
        """The calls that the answer may hold, None where it is text. Raises RequestError."""
        choice = self.tool_choice
        named = choice.function if isinstance(choice, NamedChoice) else choice
        functions = None if self.tools is None else [tool.function for tool in self.tools]
        offer = offer_of(functions, named, self.parallel_tool_calls)
        if offer is not None and self.form is not None:
            field = self.form[1].partition(".")[0]
            raise RequestError(
                f"{field} is given with tools, whose calls have a form of their own; give one", 400, field
            )
        return offer


class ChatAnswer:
    """One answer in the shape that clients know, whole or in chunks. readers: of its samples, where they may call."""

    def __init__(self, service: Service, body: ChatBody, handle: AsyncHandle, readers: list[CallReader]) -> None:
        self._handle, self._body, self._readers = handle, body, readers
        self._tokenizer = service.model.require_tokenizer()
        self._head = {
            "id": f"chatcmpl-{handle.identity}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"thrifty-{service.model.version[:12]}",
        }

    def whole(self) -> dict[str, Any]:
        """The answer when it is over."""
        choices = [
            {
                "index": sample.index,
                "message": self._message(sample),
                "logprobs": {"content": shown.of_chat(self._tokenizer, sample.logprobs)}
                if self._body.logprobs
                else None,
                "finish_reason": self._reason(sample.index, sample.finish_reason),
            }
            for sample in self._handle.samples
        ]
        usage = usage_of(self._handle).model_dump()
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage}

    def read(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds, as deltas of its sample's message."""
        if self._readers:
            return self._readers[event.sample].push(event)
        return [{"content": event.text}] if event.text else []

    def first(self) -> list[dict[str, Any]]:
        """A chunk a sample: the role."""
        role = {"role": "assistant", "content": ""}
        return [self._chunk([self._choice(index, role)]) for index in range(len(self._handle.samples))]

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds; nothing where it has no text yet."""
        deltas = self.read(event)
        logprobs = None
        if self._body.logprobs and event.logprob is not None:
            logprobs = {"content": shown.of_chat(self._tokenizer, [event.logprob])}
        if not deltas and (event.finish_reason or logprobs):
            deltas = [{}]
        reason = self._reason(event.sample, event.finish_reason)
        last = len(deltas) - 1
        return [
            self._chunk([self._choice(event.sample, delta, reason if at == last else None, None if at else logprobs)])
            for at, delta in enumerate(deltas)
        ]

    def last(self) -> list[dict[str, Any]]:
        """The usage, where it was asked for."""
        if not self._body.include_usage:
            return []
        return [self._chunk([]) | {"usage": usage_of(self._handle).model_dump()}]

    def _message(self, sample: Sample) -> dict[str, Any]:
        if self._readers:
            return self._readers[sample.index].message()
        return {"role": "assistant", "content": sample.text}

    def _reason(self, sample: int, reason: str | None) -> str | None:
        return self._readers[sample].reason(reason) if self._readers else reason

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._head | {"object": "chat.completion.chunk", "choices": choices}
        if not self._body.include_usage:
            return chunk
        return chunk | {"usage": usage_of(self._handle).model_dump() if self._body.continuous_usage else None}

    @staticmethod
    def _choice(
        index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def router(models: ModelShelf) -> APIRouter:
    """The endpoint over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", responses=STREAMED)
    async def chat_completions(body: ChatBody, http: Request) -> Response:
        """Answer a conversation."""
        service = await models.get(body.model)
        offer = body.offer
        calling = None if offer is None else Calling(offer, service.model.require_tokenizer())
        prompt = await service.encode_chat(
            checked(body.messages),
            tools=None if calling is None else calling.shown,
            template_arguments=body.chat_template_kwargs,
        )
        service.check_length(len(prompt))  # before a grammar is compiled, which may take seconds
        form = body.form if calling is None else (calling.grammar, "tools")
        sampling = body.sampling(body.limit, body.alternatives, await service.compiled(form))
        key = key_of(http)
        replay = await replay_of(service, prompt, sampling, body.thrifty, body.n, key)
        handle = await service.submit(prompt, replay.sampling, body.n, body.thrifty, key, replay.fields)
        answer = ChatAnswer(service, body, handle, [] if calling is None else calling.readers(body.n))
        if body.stream:
            keep_alive = service.settings.keep_alive_seconds
            return streamed(handle, service.metrics, answer.first(), answer.of, answer.last, keep_alive)
        await unless_gone(http, whole(handle, service.metrics, answer.read))
        return answered(answer.whole(), [handle])

    return routes
