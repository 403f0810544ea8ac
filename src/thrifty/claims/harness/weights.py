"""Losses of a model whose weights were compressed, on the off-grid view: its weights lie on no grid already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from thrifty.claims.harness.scores.passages import SCORED, Passages, cuts
from thrifty.claims.harness.state import State
from thrifty.claims.harness.statistics import Scores
from thrifty.recipe import Recipe
from thrifty.weights.offgrid import packed_view
from thrifty.weights.structure import linears
from thrifty.weights.technique import OUTSIDE

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context
    from thrifty.engine.engine import Engine
    from thrifty.weights.calibration import CalibrationSet

PREFIX = 512
MINIMUM = {"technique": "rtn", "bits": 4, "group": 128, "symmetric": True, "embedding_bits": 4}
"""What must lose: the coarsest 4 bits, of the embedding too."""


@dataclass(frozen=True)
class Compressed:
    """A model's losses, whether its first choices came, and the bytes and numbers of its linears, embedding and logits
    left out. right: not bounded as answers are: a passage has hundreds, so it never comes right or wrong as one.
    """

    losses: Scores
    right: Scores
    nbytes: int
    weights: int

    @property
    def bits(self) -> float:
        """Bits a weight, with scales and all else that is stored."""
        return 8 * self.nbytes / self.weights


class WeightScores:
    """The off-grid view of a context's model, compressed in several ways and scored on the same passages."""

    def __init__(self, context: Context) -> None:
        self.context = context
        context.say("off-grid view")
        self.view = packed_view(context.model)

    def __call__(self, *tables: dict[str, Any], calibration: CalibrationSet | None = None) -> Compressed:
        """The view under weight techniques, in their order; without any as it is. calibration: what they see instead of
        the default text.
        """
        self.context.say(f"losses of {list(tables) or 'weights as they are'}")
        options: dict[str, Any] = {} if calibration is None else {"calibration": calibration}
        return self.of(self.context.fresh(self.view, Recipe(weights=list(tables)), **options))

    def of(self, engine: Engine) -> Compressed:
        """The same of an engine, which is closed afterwards."""
        context = self.context
        count = -(-context.budget.tokens // SCORED)
        chosen = cuts(self.view.require_tokenizer(), context.length, PREFIX, count, context.seed)
        try:
            passages = Passages(engine, State(None, {}))
            losses, right = (passages.losses(chosen, [], measure) for measure in ("nll", "right"))
            inside = [own.linear for own in linears(engine.model) if own.role not in OUTSIDE]
            numbers = sum(linear.out_features * linear.in_features for linear in inside)
            return Compressed(losses, replace(right, bounded=False), sum(linear.nbytes for linear in inside), numbers)
        finally:
            engine.close()


def allowed(full: Scores, rival: Scores, share: float) -> Scores:
    """Losses that rise above the full ones by a share of what the rival's rise, token by token."""
    values = tuple(own + share * (other - own) for own, other in zip(full.values, rival.values, strict=True))
    return Scores(values, full.clusters, full.higher, full.bounded)
