"""What `fit` is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.errors import BudgetError, PromptError
from thrifty.evaluation import quality
from thrifty.evaluation.roofline.machine import cores, cpu_name
from thrifty.frontier.candidates import Candidate
from thrifty.frontier.exam import DEFAULT_TASKS
from thrifty.frontier.space import off_grid, space

if TYPE_CHECKING:
    from thrifty.models.model import Model

LONGEST_PREFIX = 4096  # tokens; a longer context is measured on as many, which takes long enough


@dataclass(frozen=True)
class Question:
    """memory: bytes for weights, cache peak and workspace. context: tokens, prompt and answer together. batch:
    sequences of that context at once. latency: seconds that a decode step of the batch may take. min_recovery: what the
    winner's recovery must reach. minutes: when the search ends at the latest, between two measurements.

    prefix, scored: tokens that are compressed and then scored, see `evaluation.quality`; items: questions of every
    task. None: so many that all fill the context, between 1024 and 4096, then 256, and 12 questions, or fewer where the
    model is too slow for that in the minutes. candidates None: those of `space`; off_grid: also what weight techniques
    cost off their grid. Raises PromptError or BudgetError for what cannot be asked of `model`.
    """

    model: Model
    memory: int
    context: int
    prefix: int | None = None
    scored: int | None = None
    threads: int | None = None
    native: bool | None = None
    candidates: Sequence[Candidate] | None = None
    batch: int = 1
    latency: float | None = None
    min_recovery: float | None = None
    minutes: float | None = None
    tasks: Sequence[str] = DEFAULT_TASKS
    items: int | None = None
    seed: int = 0
    off_grid: bool = False

    def __post_init__(self) -> None:
        limit = self.model.config.context_length
        if not 2 <= self.context <= limit:
            raise PromptError(f"context {self.context} is out of range: this model takes 2 to {limit} tokens")
        if self.memory < 1:
            raise BudgetError(f"a budget of {self.memory} bytes holds nothing; use e.g. 150MB")
        if self.batch < 1:
            raise BudgetError(f"a batch of {self.batch} holds no sequence; use 1 or more")
        if self.latency is not None and not self.latency > 0:
            raise BudgetError(f"a latency of {self.latency} s is no time; use e.g. 8ms")
        if self.min_recovery is not None and not 0 < self.min_recovery <= 1:
            raise BudgetError(f"min_recovery = {self.min_recovery} is out of range; use more than 0 and at most 1")
        if self.minutes is not None and not self.minutes > 0:
            raise BudgetError(f"minutes = {self.minutes} is no time to search; use more than 0")
        if self.items is not None and self.items < 1:
            raise BudgetError(f"{self.items} items of a task tell nothing; use 1 or more")

    def filling_prefix(self) -> int:
        """The tokens to compress: as asked, or what the context holds beside the timed and scored ones, within
        bounds.
        """
        if self.prefix is not None:
            return self.prefix
        return max(
            quality.PREFIX, min(self.context, LONGEST_PREFIX) - quality.TIMED - (self.scored or quality.SCORED) - 2
        )

    def identity(self) -> dict[str, Any]:
        """What measurements depend on, JSON-ready: searches that share it share measurements, whatever the bounds."""
        import thrifty

        return {
            "thrifty": thrifty.__version__,
            "model": self.model.version,
            "context": self.context,
            "batch": self.batch,
            "prefix": self.filling_prefix(),
            "scored": self.scored,
            "tasks": list(self.tasks),
            "items": self.items,
            "seed": self.seed,
            "threads": self.threads,
            "native": self.native,
            "machine": f"{cpu_name()} × {cores()}",
        }

    def asked(self, prefix: int) -> list[Candidate]:
        """The candidates that were given, else all of the space for a prefix of so many tokens."""
        if self.candidates is not None:
            return list(self.candidates)
        untied = {"untied": True} if "head" in self.model.linears else {}
        return [*space(prefix, **untied), *(off_grid() if self.off_grid else [])]
