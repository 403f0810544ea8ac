"""The synchronous interface for a script: a model by name, an answer back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from thrifty.engine.request import Handle, Result
from thrifty.recipe import Recipe

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
        raise NotImplementedError

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

        sampling: the fields of SamplingParameters, `greedy=True`, and `samples=n` for several answers to a
        prompt.
        """
        raise NotImplementedError

    @overload
    def chat(
        self, messages: str | Messages, *, stream: Literal[False] = False, **sampling: Any
    ) -> Result: ...

    @overload
    def chat(self, messages: str | Messages, *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...

    def chat(self, messages: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Answer `[{"role": "user", "content": "..."}]` (or one user text) through the model's chat
        template.
        """
        raise NotImplementedError

    def submit(self, prompt: Prompt | Messages, *, samples: int = 1, **sampling: Any) -> Handle:
        """Queue a text, token ids or messages and return the handle, to stream, cancel or fork."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel what runs and free the cache."""
        raise NotImplementedError

    def __enter__(self) -> Thrifty:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
