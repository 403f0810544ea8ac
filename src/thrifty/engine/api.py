"""The synchronous interface for a script: a model by name, an answer back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from thrifty.decoding.sampling import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request, Result
from thrifty.errors import PromptError, QueueFullError
from thrifty.recipe import Recipe
from thrifty.storage.budget import parse_size

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


class Thrifty:
    """A loaded model behind an engine.

    >>> model = Thrifty("smollm2-135m", memory="150MB")            # doctest: +SKIP
    >>> model.generate("The capital of France is", max_tokens=8).text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Any,
        *,
        memory: int | str | None = None,
        recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        threads: int | None = None,
        context: int | None = None,
        native: bool | None = None,
        **engine_options: Any,
    ) -> None:
        """model: a name, a path, or a loaded Model. recipe: a Recipe, its tables, or the path of its TOML
        file.

        The other arguments are those of Engine. Raises ThriftyError where the model, recipe or budget does
        not do.
        """
        from thrifty.models import load

        chosen = as_recipe(recipe)
        loaded = load(model, threads=threads, native=native) if isinstance(model, str | os.PathLike) else model
        if techniques := chosen.techniques("weights"):
            loaded = techniques[0].prepare(loaded, techniques)
        self.model = loaded
        self.recipe = chosen
        self.engine = Engine(
            loaded,
            memory=memory,
            threads=threads,
            context=context,
            native=native,
            cache=chosen.cache,
            decoding=chosen.decoding,
            **engine_options,
        )

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[False] = False, **sampling: Any) -> Result: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, stream: Literal[False] = False, **sampling: Any
    ) -> list[Result]: ...

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...

    def generate(self, prompt: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Continue a text (or token ids), or a list of them in one batch; with `stream`, pieces of text as
        they come.

        sampling: the fields of SamplingParameters, `greedy=True`, `samples=n` for several answers to a prompt, and
        `cache_memory="20MB"` as a bound on what each prompt's cache may ever take.
        """
        if not _is_list_of_prompts(prompt):
            handle = self.submit(prompt, **sampling)
            return handle.text() if stream else handle.result()
        if stream:
            raise PromptError(f"stream=True takes one prompt; the list has {len(prompt)}: stream them one by one")
        handles: list[Handle] = []
        try:
            for one in prompt:
                handles.append(self._submit_patiently(one, handles, sampling))
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    @overload
    def chat(self, messages: str | Messages, *, stream: Literal[False] = False, **sampling: Any) -> Result: ...

    @overload
    def chat(self, messages: str | Messages, *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...

    def chat(self, messages: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Answer `[{"role": "user", "content": "..."}]` (or one user text) through the model's chat template."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        handle = self.submit(turns, **sampling)
        return handle.text() if stream else handle.result()

    def submit(
        self,
        prompt: Prompt | Messages,
        *,
        samples: int = 1,
        cache_memory: int | str | None = None,
        **sampling: Any,
    ) -> Handle:
        """Queue a text, token ids or messages and return the handle, to stream, cancel or fork.

        cache_memory: `Request.cache_bytes`, in bytes or as "20MB".
        """
        parameters = SamplingParameters.of(**sampling)
        bound = None if cache_memory is None else parse_size(cache_memory, "cache_memory")
        request = Request(prompt=self.encode(prompt), sampling=parameters, samples=samples, cache_bytes=bound)
        return self.engine.submit(request)

    def encode(self, prompt: Prompt | Messages) -> list[int]:
        """Token ids of a text, of messages through the chat template, or the ids themselves.

        Raises PromptError where there is nothing to continue.
        """
        tokenizer = self.model.tokenizer
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError("the prompt is empty; it needs at least 1 character")
            return list(tokenizer.encode(prompt))
        if prompt and isinstance(prompt[0], Mapping):
            return list(tokenizer.encode_chat(prompt))
        if not prompt:
            raise PromptError("the prompt is empty; it needs at least 1 token")
        return [int(token) for token in prompt]  # type: ignore[arg-type]

    def close(self) -> None:
        """Cancel what runs and free the cache."""
        self.engine.close()

    def __enter__(self) -> Thrifty:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit_patiently(self, prompt: Prompt, earlier: list[Handle], sampling: dict[str, Any]) -> Handle:
        """Submit; where the queue is full, work on what is in it first."""
        while True:
            try:
                return self.submit(prompt, **sampling)
            except QueueFullError:
                if all(handle.finished for handle in earlier):
                    raise
                self.engine.step()


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | None) -> Recipe:
    """A Recipe from itself, its tables, the path of its TOML file, or nothing. Raises RecipeError."""
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_document(dict(recipe))
    return Recipe.load(recipe)


def _is_list_of_prompts(prompt: Any) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and not isinstance(prompt[0], int)
