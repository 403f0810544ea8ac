"""What endpoints ask of a served model: tokens of a prompt, and answers to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.async_handle import AsyncHandle
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, PromptError, RecipeError
from thrifty.serving.access.extension_limits import granted
from thrifty.serving.access.text_limits import CHARACTERS, chat_texts, check_text
from thrifty.serving.bodies.sampling import Extensions
from thrifty.serving.errors import RequestError
from thrifty.serving.metrics import Metrics
from thrifty.serving.served_model import ServedModel
from thrifty.serving.settings import ServerSettings

if TYPE_CHECKING:
    from thrifty.models.model import Model


SUITS_NOT = (RecipeError, BudgetError, PromptError)
"""What the engine says of a recipe that does not do for a request: its prompt is too short, its peak too high."""


class Service:
    """A served model under one of its names. settings: the operator's. name: what clients ask for.

    adapter: the one of its engine that answers go through, None for the model as it is.
    """

    def __init__(self, settings: ServerSettings, served: ServedModel, adapter: str | None = None) -> None:
        self.settings = settings
        self.served = served
        self.adapter = adapter
        self.name = served.name if adapter is None else f"{served.name}:{adapter}"

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self.served.ready

    @property
    def metrics(self) -> Metrics:
        """What is counted of the model."""
        return self.served.metrics

    @property
    def engine(self) -> AsyncEngine:
        """The engine. Raises RequestError (503) where there is none now."""
        return self.served.engine

    @property
    def model(self) -> Model:
        """The loaded model. Raises as `engine` does."""
        return self.served.model

    async def compiled(self, form: tuple[Grammar, str] | None) -> Grammar | None:
        """The grammar of a request, ready. form: with the field that gave it. Raises RequestError that names it."""
        if form is None:
            return None
        grammar, field = form
        try:
            await self.engine.compile(grammar)
        except PromptError as error:
            raise RequestError(str(error), param=field, code="grammar") from error
        return grammar

    def check_length(self, tokens: int) -> None:
        """Raise RequestError for a prompt that leaves no room for an answer, before anybody looks at its tokens."""
        context = self.engine.probe().context
        if tokens >= context:
            raise RequestError(
                f"the prompt has {tokens} tokens; the context holds {context}, the answer included",
                code="context_length_exceeded",
            )

    async def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, or the ids themselves, checked. Raises RequestError for a text beyond the context."""
        await self._check_texts([prompt] if isinstance(prompt, str) else [])
        return await self.engine.encode(prompt)

    async def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation (see messages.checked) through the template. Raises as `encode` does."""
        await self._check_texts(chat_texts(messages, options))
        return await self.engine.encode_chat(messages, **options)

    async def _check_texts(self, texts: Sequence[str]) -> None:
        tokenizer, context = self.model.require_tokenizer(), self.engine.probe().context
        if sum(map(len, texts)) > CHARACTERS * context:
            await asyncio.to_thread(check_text, "".join(texts), context, tokenizer.encode)

    async def submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingParameters,
        samples: int,
        extensions: Extensions,
        key: str | None,
        replay: Mapping[str, Any] | None = None,
    ) -> AsyncHandle:
        """Queue a request. key: the client's, whose prefixes no other key shares. replay: fields of a Request that its
        counterfactual stands for (see `replay`); None from an endpoint that replays nothing. Raises what the engine
        raises.
        """
        wanted = self.granted(samples, extensions)
        if extensions.counterfactual is not None and replay is None:
            raise RequestError(
                "this endpoint replays no answers; ask /v1/chat/completions or /v1/completions",
                param="thrifty.counterfactual",
            )
        self.check_length(len(prompt))
        request = Request(
            prompt=prompt,
            sampling=sampling,
            samples=samples,
            salt=salt_of(key),
            session=extensions.session,
            owner=salt_of(key) if self.settings.api_keys else "",  # without keys nobody checks what a client shows
            adapter=self.adapter,
            **wanted,
            **(replay or {}),
        )
        handle = await self._queued(request)
        self.served.track(handle)
        self.metrics.submitted(len(prompt), samples)
        return handle

    def granted(self, samples: int, extensions: Extensions) -> dict[str, Any]:
        """The fields of a Request that extensions stand for. Raises RequestError for what is beyond the operator's
        limits, and for more answers to a prompt than this server gives.
        """
        if samples > self.settings.samples:
            raise RequestError(f"n is {samples}; this server gives at most {self.settings.samples}", param="n")
        return granted(self.settings, extensions)

    async def _queued(self, request: Request) -> AsyncHandle:
        """Submit a request; with the recipe that its server's shortage asks for, where it brings none and that does.

        Who goes on with a session keeps the recipe that it began with. Raises what the engine raises of the request.
        """
        tightening = self.served.tightening
        if tightening is None or request.cache is not None or request.session is not None:
            return await self.engine.submit(request)
        rung = await tightening.rung()
        if rung is not None:
            with contextlib.suppress(*SUITS_NOT):
                handle = await self.engine.submit(dataclasses.replace(request, cache=rung.cache))
                self.metrics.tightened(rung.number)
                return handle
        return await self.engine.submit(request)


def salt_of(key: str | None) -> str:
    """What keeps the prefixes of one API key apart from all others', and does not tell the key."""
    return "" if key is None else hashlib.sha256(key.encode()).hexdigest()[:32]
