"""The served model: loaded beside the event loop, asked by every endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.async_handle import AsyncHandle
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.serving.access.text_limits import CHARACTERS, check_texts
from thrifty.serving.bodies.sampling import Extensions
from thrifty.serving.errors import RequestError
from thrifty.serving.metrics import Metrics
from thrifty.serving.settings import ServerSettings
from thrifty.storage.budget import parse_size

if TYPE_CHECKING:
    from thrifty.models.model import Model

_LOG = logging.getLogger("thrifty.serving")


class Service:
    """One model under its name. settings: the operator's. metrics: what it counts.

    Until `load` is done every request is refused with 503.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.model)
        self.created = int(time.time())
        self.failure: BaseException | None = None
        self._engine: AsyncEngine | None = None
        self._handles: weakref.WeakSet[AsyncHandle] = weakref.WeakSet()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._engine is not None

    @property
    def engine(self) -> AsyncEngine:
        """The engine. Raises RequestError (503) while the model is loaded."""
        if self._engine is None:
            raise RequestError(
                f"the model '{self.settings.model}' is being loaded; ask again soon", 503, code="loading"
            )
        return self._engine

    @property
    def model(self) -> Model:
        """The loaded model. Raises as `engine` does."""
        return self.engine.engine.model

    async def load(self, open_engine: Callable[[], Engine]) -> None:
        """Open the engine in a thread of its own. What it raises is kept as `failure`, and raised."""
        started = time.perf_counter()
        try:
            engine = await asyncio.to_thread(open_engine)
        except BaseException as error:
            self.failure = error
            raise
        self._engine = AsyncEngine(engine)
        self.metrics.watch(engine)
        _LOG.info("%s is ready after %.1f s", self.settings.model, time.perf_counter() - started)

    def end_all(self) -> None:
        """End every answer under way; those who wait for it are told that the server stops."""
        for handle in list(self._handles):
            handle.cancel()

    async def close(self) -> None:
        """End what runs and let the model go."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    def check_model(self, name: str) -> None:
        """Raise RequestError (404) for another model's name."""
        if name != self.settings.model:
            raise RequestError(
                f"the model '{name}' is not served here; '{self.settings.model}' is", 404, "model", "model_not_found"
            )

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
        await self._check_texts([text for message in messages if isinstance(text := message.get("content"), str)])
        return await self.engine.encode_chat(messages, **options)

    async def _check_texts(self, texts: Sequence[str]) -> None:
        tokenizer, context = self.model.require_tokenizer(), self.engine.probe().context
        if max(map(len, texts), default=0) > CHARACTERS * context:
            await asyncio.to_thread(check_texts, texts, context, tokenizer.encode)

    async def submit(
        self, prompt: Sequence[int], sampling: SamplingParameters, samples: int, extensions: Extensions, key: str | None
    ) -> AsyncHandle:
        """Queue a request. key: the client's, whose prefixes no other key shares. Raises what the engine raises."""
        if samples > self.settings.samples:
            raise RequestError(f"n is {samples}; this server gives at most {self.settings.samples}", param="n")
        self.check_length(len(prompt))
        request = Request(
            prompt=prompt, sampling=sampling, samples=samples, salt=salt_of(key), session=extensions.session,
            **self._bounds(extensions),
        )  # fmt: skip
        handle = await self.engine.submit(request)
        self._handles.add(handle)
        self.metrics.submitted(len(prompt), samples)
        return handle

    def _bounds(self, extensions: Extensions) -> dict[str, Any]:
        """What a request's extensions ask of the cache."""
        chosen = {"cache": extensions.cache, "cache_memory": extensions.cache_memory}
        named = [name for name, value in chosen.items() if value is not None]
        if named and not self.settings.request_recipes:
            raise RequestError(
                f"'thrifty.{named[0]}' is turned off on this server; leave it out", 403, f"thrifty.{named[0]}"
            )
        memory = extensions.cache_memory
        return {
            "cache": extensions.cache,
            "cache_bytes": None if memory is None else parse_size(memory, "thrifty.cache_memory"),
        }


def salt_of(key: str | None) -> str:
    """What keeps the prefixes of one API key apart from all others', and does not tell the key."""
    return "" if key is None else hashlib.sha256(key.encode()).hexdigest()[:32]
