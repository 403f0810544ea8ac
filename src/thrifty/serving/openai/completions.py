"""POST /v1/completions: texts or token ids to go on with."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import StrictBool, StrictInt

from thrifty.decoding.sampling import TokenLogprob
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.answer import Event
from thrifty.engine.async_handle import AsyncHandle
from thrifty.serving.access.keys import claim_of, key_of
from thrifty.serving.answers import STREAMED, answered, streamed, unless_gone, usage_of, whole
from thrifty.serving.bodies.sampling import SamplingBody, Usage
from thrifty.serving.errors import RequestError
from thrifty.serving.metrics import Metrics
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.openai import logprobs as shown
from thrifty.serving.openai.echo import Echo, check_size, echoes_of, joined
from thrifty.serving.replay import replay_of
from thrifty.serving.service import Service, salt_of

MAX_TOKENS = 16  # OpenAI's default
HUNG_UP = 499


class CompletionBody(SamplingBody):
    """What a text completion may ask for. echo: the prompt's text in front of the answer's, with `logprobs` also what
    the model thinks of its tokens; only then may `max_tokens` be 0.
    """

    prompt: str | list[StrictInt] | list[str] | list[list[StrictInt]]
    logprobs: StrictInt | None = None
    echo: StrictBool = False

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several, each a text or token ids."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)

    @property
    def limit(self) -> int:
        """Most tokens of an answer."""
        return MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def says_nothing(self) -> bool:
        """Whether the prompt alone is asked for. Raises RequestError where that is to stream, or has an answer's
        extensions.
        """
        nothing = self.echo and self.max_tokens == 0
        if nothing and self.stream:
            raise RequestError("max_tokens is 0, and nothing streams then; leave stream out", param="stream")
        if nothing and self.thrifty.model_dump(exclude_none=True):
            raise RequestError("max_tokens is 0, and there is no answer to do this for; leave it out", param="thrifty")
        return nothing


class CompletionAnswer:
    """Answers to all prompts of a request in the shape that clients know; sample s of prompt p is choice p · n + s.

    echoes: the prompts that come back, none where none was asked for.
    """

    def __init__(
        self, service: Service, body: CompletionBody, handles: Sequence[AsyncHandle], echoes: Sequence[Echo]
    ) -> None:
        self._handles, self._body, self._echoes = handles, body, echoes
        self._tokenizer = service.model.require_tokenizer()
        self._lengths: dict[int, int] = {}  # characters of each choice so far
        self._head = head(service, body, f"cmpl-{handles[0].identity}")

    def whole(self) -> dict[str, Any]:
        """The answer when all are over."""
        choices = [
            self._choice(place, sample.index, sample.text, sample.logprobs, sample.finish_reason)
            for place, handle in enumerate(self._handles)
            for sample in handle.samples
        ]
        return self._head | {"choices": choices, "usage": self._usage()}

    def first(self) -> list[dict[str, Any]]:
        """What comes before the only prompt's answer: the prompt, where it is asked for, in each choice."""
        chunks = []
        for echo in self._echoes:
            for index in range(self._body.n):
                self._lengths[index] = len(echo.text)
                choice = {"index": index, "text": echo.text, "logprobs": echo.logprobs}
                chunks.append(self._head | {"choices": [choice | {"finish_reason": None}]})
        return chunks

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What an event of the only prompt adds."""
        before = self._lengths.get(event.sample, 0)
        logprobs = None
        if self._body.logprobs is not None and event.logprob is not None:
            logprobs = shown.of_text(self._tokenizer, [event.logprob], before)
        if not (event.text or event.finish_reason or logprobs):
            return []
        self._lengths[event.sample] = before + len(event.text)
        choice = {"index": event.sample, "text": event.text, "logprobs": logprobs, "finish_reason": event.finish_reason}
        chunk = self._head | {"choices": [choice]}
        return [chunk | {"usage": self._usage()} if self._body.continuous_usage else chunk]

    def last(self) -> list[dict[str, Any]]:
        """The usage, where it was asked for."""
        return [self._head | {"choices": [], "usage": self._usage()}] if self._body.include_usage else []

    def _choice(
        self, place: int, index: int, text: str, entries: Sequence[TokenLogprob], reason: str | None
    ) -> dict[str, Any]:
        """One choice, whole. place: of its prompt."""
        echo = self._echoes[place] if self._echoes else None
        said = "" if echo is None else echo.text
        logprobs = None if self._body.logprobs is None else shown.of_text(self._tokenizer, entries, len(said))
        if echo is not None:
            logprobs = joined(echo.logprobs, logprobs)
        number = place * self._body.n + index
        return {"index": number, "text": said + text, "logprobs": logprobs, "finish_reason": reason}

    def _usage(self) -> dict[str, Any]:
        usages = [usage_of(handle).model_dump() for handle in self._handles]
        total = {name: sum(own[name] for own in usages) for name in usages[0] if name.endswith("_tokens")}
        cached = sum(own["prompt_tokens_details"]["cached_tokens"] for own in usages)
        return total | {"prompt_tokens_details": {"cached_tokens": cached}, "thrifty": usages[0]["thrifty"]}


def head(service: Service, body: CompletionBody, identity: str) -> dict[str, Any]:
    """What every answer and chunk begins with."""
    return {
        "id": identity,
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": f"thrifty-{service.model.version[:12]}",
    }


def prompts_alone(service: Service, body: CompletionBody, echoes: Sequence[Echo], identity: str) -> dict[str, Any]:
    """The answer where nothing is said behind the prompts."""
    read = sum(len(echo.tokens) for echo in echoes)
    service.metrics.read(read)
    choices = [
        {"text": echo.text, "logprobs": echo.logprobs, "finish_reason": "length"}
        for echo in echoes
        for _ in range(body.n)
    ]
    usage = Usage(
        prompt_tokens=read,
        completion_tokens=0,
        total_tokens=read,
        prompt_tokens_details={"cached_tokens": 0},
        thrifty={},
    )
    numbered = [{"index": index} | choice for index, choice in enumerate(choices)]
    return head(service, body, identity) | {"choices": numbered, "usage": usage.model_dump()}


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
        prompts, key = body.prompts, key_of(http)
        encoded = await _encoded(service, body, prompts, http)
        grammar = await service.compiled(body.form)
        sampling = body.sampling(1 if body.says_nothing else body.limit, body.logprobs, grammar)
        echoes: list[Echo] | None = []
        if body.echo:
            service.granted(body.n, body.thrifty)  # before a prompt is read for nothing
            check_size(encoded, body.logprobs, body.n)
            salt = None if body.says_nothing else salt_of(key)
            echoes = await unless_gone(http, echoes_of(service, prompts, encoded, body.logprobs, salt))
        if echoes is None:
            return Response(status_code=HUNG_UP)
        if body.says_nothing:
            return JSONResponse(prompts_alone(service, body, echoes, f"cmpl-{os.urandom(8).hex()}"))
        handles = await _submitted(service, body, encoded, sampling, key)
        answer = CompletionAnswer(service, body, handles, echoes)
        if body.stream:
            keep_alive = service.settings.keep_alive_seconds
            return streamed(handles[0], service.metrics, answer.first(), answer.of, answer.last, keep_alive)
        await unless_gone(http, all_whole(handles, service.metrics))
        return answered(answer.whole(), handles)

    return routes


async def _encoded(
    service: Service, body: CompletionBody, prompts: Sequence[str | list[int]], http: Request
) -> list[list[int]]:
    """The prompts' tokens. Raises RequestError for too many prompts, and for one that is too long."""
    if not 1 <= len(prompts) <= service.settings.prompts:
        raise RequestError(f"prompt holds {len(prompts)} prompts; give 1 to {service.settings.prompts}", param="prompt")
    claim_of(http).take(len(prompts))
    if body.stream and len(prompts) > 1:
        raise RequestError(f"stream takes one prompt; {len(prompts)} are given", param="stream")
    encoded = [await service.encode(prompt) for prompt in prompts]
    for tokens in encoded:
        service.check_length(len(tokens))  # before a grammar is compiled, which may take seconds
    return encoded


async def _submitted(
    service: Service, body: CompletionBody, encoded: Sequence[list[int]], sampling: SamplingParameters, key: str | None
) -> list[AsyncHandle]:
    """A request for each prompt; none where one of them is refused."""
    handles: list[AsyncHandle] = []
    try:
        for prompt in encoded:
            replay = await replay_of(service, prompt, sampling, body.thrifty, body.n, key)
            handles.append(await service.submit(prompt, replay.sampling, body.n, body.thrifty, key, replay.fields))
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise
    return handles
