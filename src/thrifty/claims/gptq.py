"""GPTQ: how much of what rounding to the nearest costs is saved by making up for it."""

from __future__ import annotations

import math

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import MINIMUM, PREFIX, WeightScores, allowed

OURS = {"technique": "gptq", "group": 128}
NEAREST = {"technique": "rtn", "group": 128}
SHARE = math.log(6.09 / 5.68) / math.log(6.29 / 5.68)  # 0.68 of the rise in a token's loss
HEADLINE = "loss of a token below 0.68 of round-to-nearest's rise"


class GptqClaim(Claim):
    """Losses of the off-grid view at 4 bits beside those of round-to-nearest on the same grids."""

    paper = "LLaMA-7B, WikiText2 perplexity: 5.68 in fp16; 4 bits: 6.09, round-to-nearest 6.29 (3 bits: 8.07 and 25.54)"
    source = "the GPTQ authors' repository, table of LLaMA; arXiv:2210.17323"
    rule = "the loss of a token rises by at most 0.68 of what it rises with round-to-nearest at equal bits"
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, 4 bits in groups of 128, calibrated on 4096 tokens of the package's own text; {SCORED} "
            f"tokens of prose after {PREFIX}; the paper rounds whole rows of a larger model"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        nearest, ours = score(NEAREST), score(OURS)
        ordered, fine = score(OURS | {"act_order": True}), score(OURS | {"group": 32})
        worst, near = score(MINIMUM), score(OURS | {"bits": 8})
        few, few_nearest = score(OURS | {"bits": 3}), score(NEAREST | {"bits": 3})
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, allowed(full.losses, nearest.losses, SHARE), Bar(0.0)),
            parts=(
                ahead("loss below round-to-nearest's", ours.losses, nearest.losses, paper="+0.032 nats"),
                ahead("loss below the unrounded weights'", ours.losses, full.losses, None, "-0.070 nats"),
                ahead("at 3 bits, loss below round-to-nearest's", few.losses, few_nearest.losses, paper="+1.152 nats"),
                ahead("with act_order below without", ordered.losses, ours.losses, None),
                ahead("in groups of 32 below round-to-nearest in 128", fine.losses, nearest.losses, None),
            ),
            gates=(exactly("bytes of round-to-nearest's", ours.nbytes / nearest.nbytes, Bar(1.0, at_least=False)),),
            controls=(
                Control(
                    "round-to-nearest without minimum, embedding too", "lose", advantage(worst.losses, full.losses)
                ),
                Control("8 bits", "hold", advantage(near.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told=f"{ours.bits:.2f} bits a weight, scales included",
        )
