"""Texts that are computed beside the requests: to be looked at, or for their hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from thrifty.arrays import Array, Floats
from thrifty.cache.policy import CachePolicy
from thrifty.decoding.option_values import shown, whole
from thrifty.engine.prefill.hidden import HiddenPrefill
from thrifty.engine.prefill.watching import watch_prompt
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.publishing import Publisher
    from thrifty.engine.runner import Runner
    from thrifty.engine.turn import Turn
    from thrifty.models.model import Model


class Aside:
    """Takes the engine's turn for them, and has the books counted again where one fails."""

    def __init__(
        self,
        model: Model,
        runner: Runner,
        memory: EngineMemory,
        chunk: int,
        turn: Turn,
        publisher: Publisher,
        check_open: Callable[[], None],
    ) -> None:
        """chunk: tokens that are computed at a time, a multiple of 128. check_open: raises where it is closed."""
        self._model, self._runner, self._memory, self._chunk = model, runner, memory, chunk
        self._turn, self._publisher, self._check_open = turn, publisher, check_open

    def watch_prompt(self, tokens: Sequence[int], policy: CachePolicy, scored: int) -> list[int]:
        """See `Engine.watch_prompt`."""
        prompt = self._model.checked(tokens).tolist()
        scored = whole("scored", scored, 0, "a number of tokens, 0 or more")
        if not isinstance(policy, CachePolicy):
            raise PromptError(f'policy = {shown(policy)} is no cache policy; use registry.build("cache", {{...}})')
        with self._turn:
            self._check_open()
            self._publisher.mend()
            try:
                return watch_prompt(self._runner, self._memory, prompt, policy, scored, self._chunk)
            except BaseException:
                self._publisher.sound = False
                raise

    def hidden_states(self, tokens: Sequence[int] | Array, context: int) -> Iterator[Floats]:
        """See `Engine.hidden_states`. context: the most tokens."""
        self._check_open()
        prompt = self._model.checked(tokens).tolist()
        if len(prompt) > context:
            raise PromptError(f"the text has {len(prompt)} tokens; the context holds {context}")
        self._memory.check((), len(prompt), len(prompt), what="a text to embed")
        return self._read(prompt)

    def _read(self, prompt: Sequence[int]) -> Iterator[Floats]:
        with self._turn:
            self._check_open()
            self._publisher.mend()
            reading = HiddenPrefill(self._model, self._runner, self._memory, prompt, self._chunk)
        try:
            while not reading.done:
                with self._turn:
                    self._check_open()
                    self._publisher.mend()
                    try:
                        hidden = reading.advance()
                    except BaseException:
                        self._publisher.sound = False
                        raise
                yield hidden
        finally:
            with self._turn:
                reading.close()
