"""NxMiFormer: two of four weights in 4 bits, trained by ADMM, against the same format without training."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, Part, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, Compressed, WeightScores
from thrifty.weights.calibration import python_calibration

LAYERS, STEPS, BATCH = 6, 40, 2
SEQUENCES, TOKENS = 160, 128  # of training text
TARGET = 4.5  # bits a weight of the search: more than 3.5 of all sparse, fewer than 8.5
MOST = 3.6  # bits a weight of 2:4 in 4 bits: 3.5, and short last groups
MISSING = "BERT-base fine-tuned on GLUE, the tasks' training data and the paper's schedules"


class NxMiFormerClaim(Claim):
    """Losses of the off-grid view with its last layers at 2:4 and 4 bits: trained by ADMM, at once, and by search."""

    paper = "BERT's encoder 93 % smaller at 98.2 % of its accuracy; with formats by component 87.5 % at 99.5 %"
    source = "arXiv:2206.15014, abstract"
    rule = "the GLUE score 93 % smaller is at least 98.2 % of the whole model's"
    models = ("smollm2-135m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        view = score.view
        text = python_calibration(view, SEQUENCES, TOKENS)
        count = len(view.config.layers)
        layers = list(range(max(0, count - LAYERS), count))
        share = len(layers) / count
        headline = Part("GLUE score of the whole model's, 93 % smaller", missing=MISSING)
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable("loss of a token below that without training", weak)

        def trained(**options: Any) -> Compressed:
            table = {"technique": "nxmiformer", "layers": layers, "batch": BATCH, **options}
            return score(table, calibration=text)

        ours, once = trained(steps=STEPS), trained(steps=0)
        searched, even = trained(steps=STEPS, target=TARGET), trained(steps=STEPS, format="int4")
        return Measurement(
            headline=headline,
            parts=(
                ahead(f"loss after {STEPS} steps below that of 2:4 and 4 bits at once", ours.losses, once.losses),
                ahead("formats by component below 4 bits for all, at equal bits", searched.losses, even.losses),
                ahead("loss below the whole weights'", ours.losses, full.losses, None),
                exactly("bits a weight in these layers by search", _bits(searched, full, share), None, "plain"),
                exactly("bits a weight in these layers with 4 bits for all", _bits(even, full, share), None, "plain"),
            ),
            controls=(
                Control("2:4 and 4 bits at once", "lose", advantage(once.losses, full.losses)),
                Control("8 bits, trained", "hold", advantage(trained(steps=STEPS, format="int8").losses, full.losses)),
            ),
            gates=(exactly("bits a weight in these layers", _bits(ours, full, share), Bar(MOST, False), "plain"),),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=(
                f"off-grid view in bf16, the last {len(layers)} of {count} layers, {STEPS} steps of {BATCH * TOKENS} "
                f"tokens; {context.budget.tokens} tokens of prose after {PREFIX}"
            ),
        )


def _bits(ours: Compressed, full: Compressed, share: float) -> float:
    """Bits a weight in the layers that were compressed, a share of all layers; the others hold what they held."""
    others = (1 - share) * full.nbytes
    return 8 * (ours.nbytes - others) / (share * ours.weights)
