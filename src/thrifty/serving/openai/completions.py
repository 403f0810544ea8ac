"""POST /v1/completions: texts or token ids to go on with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import StrictInt

from thrifty.engine.answer import Event
from thrifty.engine.async_handle import AsyncHandle
from thrifty.serving.access.keys import claim_of, key_of
from thrifty.serving.answers import STREAMED, streamed, unless_gone, usage_of, whole
from thrifty.serving.bodies.sampling import SamplingBody
from thrifty.serving.errors import RequestError
from thrifty.serving.metrics import Metrics
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.openai import logprobs as shown
from thrifty.serving.service import Service

MAX_TOKENS = 16  # OpenAI's default


class CompletionBody(SamplingBody):
    """What a text completion may ask for."""

    prompt: str | list[StrictInt] | list[str] | list[list[StrictInt]]
    logprobs: StrictInt | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several, each a text or token ids."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


class CompletionAnswer:
    """Answers to all prompts of a request in the shape that clients know; sample s of prompt p is choice p · n + s."""

    def __init__(self, service: Service, body: CompletionBody, handles: list[AsyncHandle]) -> None:
        self._handles, self._body = handles, body
        self._tokenizer = service.model.require_tokenizer()
        self._lengths: dict[int, int] = {}  # characters of each choice so far
        self._head = {
            "id": f"cmpl-{handles[0].identity}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"thrifty-{service.model.version[:12]}",
        }

    def whole(self) -> dict[str, Any]:
        """The answer when all are over."""
        choices = [
            {
                "index": place * self._body.n + sample.index,
                "text": sample.text,
                "logprobs": None if self._body.logprobs is None else shown.of_text(self._tokenizer, sample.logprobs, 0),
                "finish_reason": sample.finish_reason,
            }
            for place, handle in enumerate(self._handles)
            for sample in handle.samples
        ]
        return self._head | {"choices": choices, "usage": self._usage()}

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What an event of the only prompt adds."""
        if not (event.text or event.finish_reason):
            return []
        before = self._lengths.get(event.sample, 0)
        self._lengths[event.sample] = before + len(event.text)
        logprobs = None
        if self._body.logprobs is not None and event.logprob is not None:
            logprobs = shown.of_text(self._tokenizer, [event.logprob], before)
        choice = {"index": event.sample, "text": event.text, "logprobs": logprobs, "finish_reason": event.finish_reason}
        chunk = self._head | {"choices": [choice]}
        return [chunk | {"usage": self._usage()} if self._body.continuous_usage else chunk]

    def last(self) -> list[dict[str, Any]]:
        """The usage, where it was asked for."""
        return [self._head | {"choices": [], "usage": self._usage()}] if self._body.include_usage else []

    def _usage(self) -> dict[str, Any]:
        usages = [usage_of(handle).model_dump() for handle in self._handles]
        total = {name: sum(own[name] for own in usages) for name in usages[0] if name.endswith("_tokens")}
        cached = sum(own["prompt_tokens_details"]["cached_tokens"] for own in usages)
        return total | {"prompt_tokens_details": {"cached_tokens": cached}, "thrifty": usages[0]["thrifty"]}


async def all_whole(handles: Sequence[AsyncHandle], metrics: Metrics) -> None:
    """Wait for all ends. Raises the error of the first that has one, and ends the others."""
    tasks = [asyncio.ensure_future(whole(handle, metrics)) for handle in handles]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def router(models: ModelShelf) -> APIRouter:
    """The endpoint over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/completions", responses=STREAMED)
    async def completions(body: CompletionBody, http: Request) -> Response:
        """Go on with one text, or with several."""
        service = await models.get(body.model)
        prompts = body.prompts
        if not 1 <= len(prompts) <= service.settings.prompts:
            raise RequestError(
                f"prompt holds {len(prompts)} prompts; give 1 to {service.settings.prompts}", param="prompt"
            )
        claim_of(http).take(len(prompts))
        if body.stream and len(prompts) > 1:
            raise RequestError(f"stream takes one prompt; {len(prompts)} are given", param="stream")
        encoded = [await service.encode(prompt) for prompt in prompts]
        for tokens in encoded:
            service.check_length(len(tokens))  # before a grammar is compiled, which may take seconds
        grammar = await service.compiled(body.form)
        sampling = body.sampling(MAX_TOKENS if body.max_tokens is None else body.max_tokens, body.logprobs, grammar)
        handles: list[AsyncHandle] = []
        try:
            for prompt in encoded:
                handles.append(await service.submit(prompt, sampling, body.n, body.thrifty, key_of(http)))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        answer = CompletionAnswer(service, body, handles)
        if body.stream:
            keep_alive = service.settings.keep_alive_seconds
            return streamed(handles[0], service.metrics, [], answer.of, answer.last, keep_alive)
        await unless_gone(http, all_whole(handles, service.metrics))
        return JSONResponse(answer.whole())

    return routes
