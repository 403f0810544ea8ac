"""Texts that are computed beside the requests: to be looked at, for their hidden states, or to be scored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from thrifty.arrays import Array, Floats
from thrifty.cache.policy import CachePolicy
from thrifty.decoding.option_values import shown, whole
from thrifty.decoding.sampling import TokenLogprob
from thrifty.engine.drafting.models import facts_of
from thrifty.engine.prefill.hidden import HiddenPrefill, final_norm
from thrifty.engine.prefill.scoring import ROWS, logprobs_behind
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
        with self._whole_turn():
            return watch_prompt(self._runner, self._memory, prompt, policy, scored, self._chunk)

    def hidden_states(self, tokens: Sequence[int] | Array, context: int) -> Iterator[Floats]:
        """See `Engine.hidden_states`. context: the most tokens."""
        return self._normed(self._checked(tokens, context, "a text to embed"))

    def prompt_logprobs(
        self, tokens: Sequence[int] | Array, context: int, alternatives: int, salt: str | None
    ) -> Iterator[list[TokenLogprob]]:
        """See `Engine.prompt_logprobs`. context: the most tokens."""
        alternatives = whole("alternatives", alternatives, 0, "a number of tokens, 0 or more")
        return self._scored(self._checked(tokens, context, "a prompt to score"), alternatives, salt)

    def _checked(self, tokens: Sequence[int] | Array, context: int, what: str) -> list[int]:
        """The tokens of a text that can be read. Raises PromptError and BudgetError where it never can."""
        self._check_open()
        if self._model.config.mask_id is not None:
            raise PromptError(f"{what} is read token by token, and this model fills in masks; use a causal model")
        prompt: list[int] = self._model.checked(tokens).tolist()
        if len(prompt) > context:
            raise PromptError(f"the text has {len(prompt)} tokens; the context holds {context}")
        self._memory.check((), len(prompt), len(prompt), what=what)
        return prompt

    def _normed(self, prompt: Sequence[int]) -> Iterator[Floats]:
        with contextlib.closing(self._chunks(prompt, None)) as chunks:
            for _, hidden in chunks:
                yield final_norm(self._model, hidden)

    def _scored(self, prompt: Sequence[int], alternatives: int, salt: str | None) -> Iterator[list[TokenLogprob]]:
        absent = facts_of(self._model).absent
        with contextlib.closing(self._chunks(prompt, salt)) as chunks:
            for start, hidden in chunks:
                following, first = prompt[start + 1 : start + len(hidden) + 1], 0
                while first < len(following):
                    with self._whole_turn(), self._memory.rows_of_logits(min(ROWS, len(following) - first)) as count:
                        last = first + count
                        rows, tokens = hidden[first:last], following[first:last]
                        told = logprobs_behind(self._runner, rows, tokens, absent, alternatives, start + first)
                    yield told
                    first = last

    def _chunks(self, prompt: Sequence[int], salt: str | None) -> Generator[tuple[int, Floats], None, None]:
        """The states of a text chunk by chunk, before the final norm, each with the number of its first row."""
        with self._turn:
            self._check_open()
            self._publisher.mend()
            reading = HiddenPrefill(self._runner, self._memory, prompt, self._chunk, salt)
        try:
            while not reading.done:
                with self._whole_turn():
                    start = reading.length
                    hidden = reading.advance()
                yield start, hidden
        finally:
            with self._turn:
                reading.close()

    @contextlib.contextmanager
    def _whole_turn(self) -> Iterator[None]:
        """The engine's turn, with its books in order before, and counted again after an error."""
        with self._turn:
            self._check_open()
            self._publisher.mend()
            try:
                yield
            except BaseException:
                self._publisher.sound = False
                raise
