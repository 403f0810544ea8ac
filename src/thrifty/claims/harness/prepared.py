"""Losses of a model whose weights were changed, and the bytes of its linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.claims.harness.scores.passages import SCORED, Passages, cuts
from thrifty.claims.harness.state import State
from thrifty.claims.harness.statistics import Scores
from thrifty.recipe import Recipe
from thrifty.weights.structure import linears
from thrifty.weights.technique import OUTSIDE

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context
    from thrifty.models.model import Model
    from thrifty.weights.calibration import CalibrationSet

PREFIX = 512


@dataclass(frozen=True)
class Prepared:
    """losses: one a scored token, in nats. nbytes: of the linears, embedding and output matrix left out."""

    losses: Scores
    nbytes: int


def prepared(
    context: Context, model: Model, tables: list[dict[str, Any]], calibration: CalibrationSet | None = None
) -> Prepared:
    """What is scored of a model under the weights tables of a recipe; as it is without any. The passages are those of
    the context's seed and budget, the same for every call.
    """
    context.say(f"losses of {tables or 'weights as they are'}")
    count = -(-context.budget.tokens // SCORED)
    chosen = cuts(context.model.require_tokenizer(), context.length, PREFIX, count, context.seed)
    options: dict[str, Any] = {} if calibration is None else {"calibration": calibration}
    engine = context.fresh(model, Recipe(weights=tables), **options)
    try:
        losses = Passages(engine, State(None, {})).losses(chosen, [], "nll")
        return Prepared(losses, sum(own.linear.nbytes for own in linears(engine.model) if own.role not in OUTSIDE))
    finally:
        engine.close()
