"""`thrifty fit`: measure recipes one after the other and let the caller watch the frontier grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from thrifty.engine.engine import Engine
from thrifty.errors import BudgetError, PromptError
from thrifty.evaluation import memory, quality
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.speed import warm_up
from thrifty.frontier import choice
from thrifty.frontier.candidates import Candidate, Grid, day_one, grouped
from thrifty.frontier.measurement import Measurement, Need
from thrifty.weights.offgrid import offgrid
from thrifty.weights.technique import apply

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.models.model import Model


ANSWER = 256  # tokens of a full context that are answer; what compresses prompts leaves them whole
LONGEST_PREFIX = 4096  # tokens; a longer context is measured on as many, which takes long enough


@dataclass(frozen=True)
class Question:
    """What is asked. memory: bytes for weights, cache peak and workspace. context: tokens, prompt and answer together.

    prefix, scored: tokens that are compressed and then scored, see `evaluation.quality`. prefix None: so many that
    both fill the context, between 1024 and 4096. candidates None: those of the first day.
    Raises PromptError or BudgetError for what cannot be asked of `model`.
    """

    model: Model
    memory: int
    context: int
    prefix: int | None = None
    scored: int = quality.SCORED
    threads: int | None = None
    native: bool | None = None
    candidates: Sequence[Candidate] | None = None

    def __post_init__(self) -> None:
        limit = self.model.config.context_length
        if not 2 <= self.context <= limit:
            raise PromptError(f"context {self.context} is out of range: this model takes 2 to {limit} tokens")
        if self.memory < 1:
            raise BudgetError(f"a budget of {self.memory} bytes holds nothing; use e.g. 150MB")

    def filling_prefix(self) -> int:
        """The tokens to compress: as asked, or what the context holds beside the scored ones, within bounds."""
        if self.prefix is not None:
            return self.prefix
        return max(quality.PREFIX, min(self.context, LONGEST_PREFIX) - self.scored - 2)


class Fit:
    """The search. Iterate `rows` to run it; stop whenever you like, `best` answers from the rows so far.

    skipped: candidates that could not be measured, each with the reason.
    """

    def __init__(self, question: Question, extra: Sequence[Candidate] = ()) -> None:
        """extra: candidates beside those of the question. Raises PromptError where the model's context does not hold
        what is to be compressed and scored.
        """
        self.question = question
        self.prefix = question.filling_prefix()
        own = day_one(self.prefix) if question.candidates is None else question.candidates
        self.candidates = [*own, *extra]
        self.measured: list[Measurement] = []
        self.skipped: list[tuple[Candidate, str]] = []
        self.total = len(self.candidates)
        self.passage = quality.passage(
            question.model.tokenizer, question.model.config.context_length, self.prefix, question.scored
        )

    @property
    def best(self) -> Measurement | None:
        """The choice among the rows so far."""
        return choice.best(self.measured)

    def rows(self) -> Iterator[Measurement]:
        """Measure every candidate. Raises BudgetError before measuring anything where none would fit."""
        self.check_budget()
        for off_grid in (False, True):
            family = [one for one in self.candidates if (one.grid is Grid.OFF) == off_grid]
            if family:
                yield from self._family(list(grouped(family)), off_grid)

    def check_budget(self) -> None:
        """Raise BudgetError where no servable candidate fits, with what would."""
        needs: list[tuple[str, Need]] = []
        smallest: tuple[int, int] | None = None
        for group in grouped(self.candidates):
            if not group[0].servable:
                continue
            with self._engine(self._weights(group[0], self.question.model)) as engine:
                for candidate in group:
                    need = predict(engine, candidate, self.question.context)
                    if need.peak <= self.question.memory:
                        return
                    needs.append((candidate.label, need))
                    if smallest is None or need.peak < smallest[0]:
                        longest = longest_context(engine, candidate, self.question.context, self.question.memory)
                        smallest = (need.peak, longest)
        if smallest is not None:
            raise choice.refuse(needs, self.question.memory, self.question.context, smallest[1])

    def _family(self, groups: list[list[Candidate]], off_grid: bool) -> Iterator[Measurement]:
        """The candidates that share a baseline."""
        model = self.question.model
        if off_grid:
            model = offgrid(model, dtype=torch.bfloat16, packed=True)
        baseline: quality.Baseline | None = None
        try:
            for group in groups:
                with self._engine(self._weights(group[0], model)) as engine:
                    warm_up(engine)
                    for candidate in group:
                        try:
                            row, baseline = self._measure(engine, candidate, baseline)
                        except MeasurementError as error:
                            self.skipped.append((candidate, str(error)))
                            continue
                        self.measured.append(row)
                        yield row
        finally:
            if baseline is not None:
                baseline.close()

    def _measure(
        self, engine: Engine, candidate: Candidate, baseline: quality.Baseline | None
    ) -> tuple[Measurement, quality.Baseline | None]:
        ledger = engine.memory.ledger
        with memory.watch() as process:
            ledger.reset_peak()
            if candidate.uncompressed:
                baseline = quality.Baseline.measure(engine, self.passage)
                run = baseline.run
            elif baseline is None:
                raise ValueError("the uncompressed candidate must come before those that are compared with it")
            else:
                run = quality.measure(engine, baseline, candidate.recipe.cache, compresses=candidate.compresses_cache)
        assert run is not None
        need = predict(engine, candidate, self.question.context)
        row = Measurement(
            candidate=candidate,
            need=need,
            fits=need.peak <= self.question.memory,
            prompt=len(self.passage.prompt),
            ledger_peak=ledger.peak,
            ledger_steady=run.steady,
            process_peak=process.peak,
            prefill_rate=run.prefill_rate,
            decode_rate=run.decode_rate,
            quality=run.quality,
        )
        return row, baseline

    def _weights(self, candidate: Candidate, model: Model) -> Model:
        techniques = candidate.recipe.techniques("weights")
        return apply(model, techniques) if techniques else model

    @contextmanager
    def _engine(self, model: Model) -> Iterator[Engine]:
        question = self.question
        engine = Engine(model, threads=question.threads, native=question.native, prefix_tree=False)
        try:
            yield engine
        finally:
            engine.close()


def _need(engine: Engine, policies: Sequence[CachePolicy], context: int) -> Need:
    memory = engine.memory
    cache = memory.footprint(policies, context - min(ANSWER, context // 4 + 1), context)
    return Need(engine.model.nbytes, memory.workspace, cache.peak_bytes, cache.steady_bytes)


def predict(engine: Engine, candidate: Candidate, context: int) -> Need:
    """Bytes of one sequence of `context` tokens, at most 256 of them an answer, under the candidate."""
    policies = candidate.recipe.techniques("cache")
    return _need(engine, policies, context)


def longest_context(engine: Engine, candidate: Candidate, context: int, budget: int) -> int:
    """The longest context below `context` that fits, 0 where none does."""
    policies = candidate.recipe.techniques("cache")
    low, high = 0, context
    while high - low > 1:
        middle = (low + high) // 2
        if _need(engine, policies, middle).peak <= budget:
            low = middle
        else:
            high = middle
    return low if low >= 2 else 0
