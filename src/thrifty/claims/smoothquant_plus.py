"""SmoothQuant+: whether 4 bits cost nothing once the activations' outliers are smoothed into the weights."""

from __future__ import annotations

import math
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import MINIMUM, PREFIX, WeightScores
from thrifty.weights.calibration import default_calibration
from thrifty.weights.techniques.smoothquant_plus import SmoothQuantPlus

NEAREST = {"technique": "rtn", "group": 128}
LOSSLESS = math.log(1.01)  # of a token's loss, in nats
HEADLINE = "loss of a token below the unrounded weights'"


class SmoothquantPlusClaim(Claim):
    """Losses of the off-grid view at 4 bits, beside round-to-nearest at equal bytes."""

    paper = "Code Llama-34B on HumanEval, 4 bits in groups of 128: no loss of accuracy, round-to-nearest loses"
    source = "arXiv:2312.03788, abstract and section 4"
    rule = "perplexity rises by at most 1 %, which is 0.010 nats a token"
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, 4 bits in groups of 128, strength searched on the package's own text; {SCORED} tokens of "
            f"prose after {PREFIX}; the paper's model is 250 times as large and solves programming tasks"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        context.say("searching the strength")
        alpha = SmoothQuantPlus().strength(score.view, default_calibration(score.view))
        ours, nearest = score(_table(alpha)), score(NEAREST)
        half, near, worst = score(_table(0.5)), score(_table(alpha) | {"bits": 8}), score(MINIMUM)
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, Bar(-LOSSLESS), "no loss"),
            parts=(
                ahead("loss below round-to-nearest's", ours.losses, nearest.losses),
                ahead("loss below that of strength 0.5", ours.losses, half.losses, None),
            ),
            gates=(exactly("bytes of round-to-nearest's", ours.nbytes / nearest.nbytes, Bar(1.0, at_least=False)),),
            controls=(
                Control(
                    "round-to-nearest without minimum, embedding too", "lose", advantage(worst.losses, full.losses)
                ),
                Control("8 bits", "hold", advantage(near.losses, full.losses)),
                Control("round-to-nearest", "shown", advantage(nearest.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told=f"searched strength {alpha:g}; {ours.bits:.2f} bits a weight, scales included",
        )


def _table(alpha: float) -> dict[str, Any]:
    return {"technique": "smoothquant-plus", "group": 128, "alpha": alpha}
