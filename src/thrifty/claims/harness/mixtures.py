"""What compressing the weights of a mixture of experts does to the prose that it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty import registry
from thrifty.claims.harness.scores.passages import Passages, cuts
from thrifty.claims.harness.state import State
from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.text import held_out
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.structure import linears
from thrifty.weights.technique import OUTSIDE, prepare

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context
    from thrifty.models.model import Model

MODEL = "mixture-2m"
PREFIX, SCORED = 64, 64  # tokens before the scored ones, and of these: many short passages tell more than few
SEQUENCES, TOKENS = 8, 256  # of calibration


@dataclass(frozen=True)
class Predicted:
    """losses: of tokens, in nats; right: whether the first choice came. nbytes: of the linears, embedding and logits
    left out; expert_bytes: of the routed experts.
    """

    losses: Scores
    right: Scores
    nbytes: int
    expert_bytes: int


def predicted(context: Context, *tables: Mapping[str, Any]) -> Predicted:
    """The context's model with these weight techniques, in order, on judged prose; those that calibrate see prose of
    the half for tuning. Without any: as it is.
    """
    context.say(f"losses under {' then '.join(str(dict(table)) for table in tables) or 'weights as they are'}")
    techniques = [registry.build("weights", dict(table)) for table in tables]
    model = prepare(context.model, techniques, calibration=_calibration(context.model))
    count = -(-context.budget.tokens // SCORED)
    chosen = cuts(model.require_tokenizer(), context.length, PREFIX, count, context.seed, SCORED)
    engine = context.fresh(model)
    try:
        passages = Passages(engine, State(None, {}))
        losses, right = (passages.losses(chosen, [], measure) for measure in ("nll", "right"))
    finally:
        engine.close()
    inside = [own for own in linears(model) if own.role not in OUTSIDE]
    experts = sum(own.linear.nbytes for own in inside if ".mlp.experts." in own.name)
    return Predicted(losses, right, sum(own.linear.nbytes for own in inside), experts)


def _calibration(model: Model) -> CalibrationSet:
    ids = held_out(model.require_tokenizer(), SEQUENCES * TOKENS, half="tuning")
    return CalibrationSet("prose for tuning", np.array(ids, np.int64).reshape(SEQUENCES, TOKENS))
