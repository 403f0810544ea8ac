"""What an engine answers about itself, beside its requests: facts, bytes, times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from thrifty.engine import inspection
from thrifty.engine.inspection import EngineProbe, EngineUsage

if TYPE_CHECKING:
    from thrifty.cache.footprint import Footprint
    from thrifty.cache.policy import CachePolicy
    from thrifty.engine.admission.intake import Intake
    from thrifty.engine.admission.memory import EngineMemory
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

    def probe(self) -> EngineProbe:
        """What the engine is: runner, threads, context, end tokens, budget, bytes of weights and workspace."""
        return inspection.probe(self.runner, self.memory, self.intake)

    def usage(self) -> EngineUsage:
        """What it holds now and held at most, by category of the ledger, and how many sequences are in it."""
        with self._turn:
            return inspection.usage(self.memory, self._scheduler)

    def reset_peak(self) -> None:
        """Let the peak of `usage` begin anew, at what is held now."""
        self.memory.ledger.reset_peak()

    def profile(self) -> AbstractContextManager[Mapping[str, float]]:
        """Times what native code does inside the block: seconds by kind of operation, filled at its end.

        Raises KernelError where the engine runs on the reference path.
        """
        return inspection.profile(self.runner)

    def footprint(self, policies: Sequence[CachePolicy], prompt: int, total: int, sequences: int = 1) -> Footprint:
        """Upper bounds of the bytes beyond weights and workspace that `sequences` requests take, which share nothing: a
        prompt of `prompt` tokens each, grown to `total`. Nothing is run.
        """
        return self.memory.together(policies, prompt, total, sequences)

    def cache_footprint(self, policies: Sequence[CachePolicy], prompt: int, total: int) -> Footprint:
        """Of these, the bytes of one request's cache alone."""
        return self.memory.cache.footprint(policies, prompt, total)
