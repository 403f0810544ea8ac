"""What an engine tells beside its requests: facts, bytes, times, and what a prompt looks like from inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from thrifty.engine import inspection
from thrifty.engine.inspection import EnginePressure, EngineProbe, EngineUsage

if TYPE_CHECKING:
    from thrifty.arrays import Array, Floats
    from thrifty.cache.footprint import Footprint
    from thrifty.cache.policy import CachePolicy
    from thrifty.decoding.sampling import TokenLogprob
    from thrifty.engine.admission.intake import Intake
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.aside import Aside
    from thrifty.engine.runner import Runner
    from thrifty.engine.scheduler import Scheduler
    from thrifty.engine.turn import Turn


class Inspected:
    """The base of `Engine` that only looks. runner, memory, intake: the engine's own."""

    runner: Runner
    memory: EngineMemory
    intake: Intake
    _scheduler: Scheduler
    _turn: Turn
    _aside: Aside

    def probe(self) -> EngineProbe:
        """What the engine is: runner, threads, context, end tokens, budget, bytes of weights and workspace."""
        return inspection.probe(self.runner, self.memory, self.intake)

    def usage(self) -> EngineUsage:
        """What it holds now and held at most, by category of the ledger, and how many sequences are in it."""
        with self._turn:
            return inspection.usage(self.memory, self._scheduler)

    def pressure(self) -> EnginePressure:
        """How short it is of memory and of time now; see `EnginePressure`."""
        with self._turn:
            return inspection.pressure(self.memory, self._scheduler)

    def reset_peak(self) -> None:
        """Let the peak of `usage` begin anew, at what is held now."""
        self.memory.ledger.reset_peak()

    def profile(self) -> AbstractContextManager[Mapping[str, float]]:
        """Times what native code does inside the block: seconds by kind of operation, filled at its end.

        Raises KernelError where the engine runs on the reference path.
        """
        return inspection.profile(self.runner)

    def check_cache(self, cache: Sequence[Mapping[str, Any]]) -> None:
        """Raise RecipeError where a recipe's cache tables do not do for this model."""
        self.intake.check_cache(cache)

    def footprint(self, policies: Sequence[CachePolicy], prompt: int, total: int, sequences: int = 1) -> Footprint:
        """Upper bounds of the bytes beyond weights and workspace that `sequences` requests take, which share nothing: a
        prompt of `prompt` tokens each, grown to `total`. Nothing is run.
        """
        return self.memory.together(policies, prompt, total, sequences)

    def cache_footprint(self, policies: Sequence[CachePolicy], prompt: int, total: int) -> Footprint:
        """Of these, the bytes of one request's cache alone."""
        return self.memory.cache.footprint(policies, prompt, total)

    def watch_prompt(self, tokens: Sequence[int], policy: CachePolicy, scored: int = 1) -> list[int]:
        """Compute a prompt layer by layer, showing each layer to a policy, and forget it.

        For policies that look: probes of heads, statistics of a text. scored: how many of the last tokens are answered.
        Returns the model's first choice after each of them. It is no request: it holds the engine's turn until it is
        done. Raises PromptError for tokens that the model does not take, BudgetError where they do not fit.
        """
        return self._aside.watch_prompt(tokens, policy, scored)

    def hidden_states(self, tokens: Sequence[int] | Array) -> Iterator[Floats]:
        """The final hidden states of a text (after the final norm), chunk by chunk: fp32 [rows, hidden] each.

        It is no request: each chunk holds the engine's turn, and steps may be taken between two. What it takes is held
        from the first chunk to the end, or until it is closed. Raises PromptError and BudgetError as `submit` does; the
        first chunk raises QueueFullError where others hold the memory.
        """
        return self._aside.hidden_states(tokens, self.intake.context)

    def prompt_logprobs(
        self, tokens: Sequence[int] | Array, alternatives: int = 0, salt: str | None = None
    ) -> Iterator[list[TokenLogprob]]:
        """The log-probability of each token of a prompt behind the ones before it, from the second on, some at a time;
        with the best `alternatives` each. All rows attend to all rows before them, whatever recipe the engine has.

        salt: requests under it may begin with what is read here (see `Request.salt`); None: nobody. It is no request:
        see `hidden_states`, also for what it raises.
        """
        return self._aside.prompt_logprobs(tokens, self.intake.context, alternatives, salt)
