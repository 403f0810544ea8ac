"""XTC: what a short distillation gives back to signs; the paper's own figure needs its classifiers."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Part, ahead, exactly
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, Compressed, WeightScores
from thrifty.weights.calibration import python_calibration

STEPS, BATCH = 30, 2
NEAR = {"technique": "rtn", "bits": 8, "group": 32}
SEQUENCES, TOKENS = 120, 128  # of training text
MISSING = "BERT-base fine-tuned on GLUE, the tasks' training data and 18 epochs of distillation on a GPU"


class XTCClaim(Claim):
    """Losses of the off-grid view with ternary and binary linears, distilled and not."""

    paper = "BERT-base with 1-bit weights, 32 × smaller: almost no loss on GLUE; 5 layers, 50 × smaller: 97 % of it"
    source = "arXiv:2206.01859, abstract"
    rule = "the GLUE score with 1-bit weights is at least 99 % of the teacher's"
    models = ("smollm2-135m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        scored = WeightScores(context)
        text = python_calibration(scored.view, SEQUENCES, TOKENS)
        full = scored()

        def signs(weights: str, steps: int) -> Compressed:
            table = {"technique": "xtc", "weights": weights, "steps": steps, "batch": BATCH}
            return scored(table, calibration=text)

        ours, plain, binary = signs("ternary", STEPS), signs("ternary", 0), signs("binary", STEPS)
        near = scored(NEAR)
        return Measurement(
            headline=Part("GLUE score of the teacher's, 1-bit weights", missing=MISSING),
            parts=(
                ahead(
                    f"ternary: loss of a token after {STEPS} steps below that of rounding alone",
                    ours.losses,
                    plain.losses,
                ),
                ahead("ternary: loss below the whole weights'", ours.losses, full.losses, None),
                ahead("binary: loss below the whole weights'", binary.losses, full.losses, None),
                exactly("ternary: bytes of the linears", ours.nbytes / full.nbytes, None),
                exactly("binary: bytes of the linears", binary.nbytes / full.nbytes, None),
            ),
            controls=(
                Control("ternary without distillation", "lose", advantage(plain.losses, full.losses)),
                Control("8 bits", "hold", advantage(near.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=(
                f"off-grid view in bf16, all linears of the layers, {STEPS} steps of {BATCH * TOKENS} tokens; "
                f"{context.budget.tokens} tokens of prose after {PREFIX}"
            ),
        )
