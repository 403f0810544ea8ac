"""SparseGPT: what leaving two of every four weights out costs a model when the others make up for them."""

from __future__ import annotations

import math

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, WeightScores
from thrifty.weights.calibration import default_calibration

RISE = math.log(8.74 / 8.35)  # of a token's loss, in nats
HEADLINE = "loss of a token below the dense weights'"
SEQUENCES, TOKENS = 8, 256  # of the package's own text, to calibrate with
SMALLER = 9 / 16 + 0.01  # of 16 bits: two of four numbers of 16, and a bit a weight for the mask


class SparseGPTClaim(Claim):
    """Losses of the off-grid view, its weights in bf16, dense and at 2:4."""

    paper = "OPT-175B at 2:4, raw-WikiText2 perplexity: 8.74 (dense 8.35)"
    source = "arXiv:2301.00774, table 2"
    rule = "perplexity rises by at most 4.7 %, which is 0.046 nats a token"
    models = ("smollm2-135m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        shown = default_calibration(score.view, SEQUENCES, TOKENS)
        setting = (
            f"off-grid view in bf16, all linears of the layers at 2:4, calibrated on {SEQUENCES * TOKENS} tokens; "
            f"{context.budget.tokens} tokens of prose after {PREFIX}; a model a thousandth of the paper's, "
            "whose own smaller models lose far more"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        table = {"technique": "sparsegpt"}
        ours, still = (score(table | {"update": update}, calibration=shown) for update in (True, False))
        magnitude, near = score({"technique": "magnitude"}), score({"technique": "rtn", "bits": 8})
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, Bar(-RISE), "-0.046 nats"),
            parts=(
                ahead("loss below that of the largest weights", ours.losses, magnitude.losses),
                ahead("loss below that of its own masks without the update", ours.losses, still.losses),
            ),
            gates=(exactly("bytes of the linears", ours.nbytes / full.nbytes, Bar(SMALLER, at_least=False)),),
            controls=(
                Control("the largest weights stay", "lose", advantage(magnitude.losses, full.losses)),
                Control("8 bits, all weights", "hold", advantage(near.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
        )
