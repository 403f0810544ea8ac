"""HQQ: as good without calibration as what calibrates."""

from __future__ import annotations

import math

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import MINIMUM, PREFIX, WeightScores

GROUP = 64
BEHIND = math.log(5.30 / 5.28)  # nats a token that AWQ is ahead in the article
HEADLINE = "loss of a token below AWQ's"


class HqqClaim(Claim):
    """Losses of the off-grid view at 4 bits beside those of AWQ, GPTQ and round-to-nearest at equal bits."""

    paper = "Llama-2-7B, WikiText2 perplexity, 4 bits in groups of 64: HQQ 5.30, AWQ 5.28, GPTQ 5.38 (5.18 in fp16)"
    source = "mobiusml.github.io/hqq_blog, table of Llama-2-7B; figures at second hand, not read again"
    rule = "the loss of a token is at most 0.0038 nats above AWQ's, which calibrates, at equal bits"
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, 4 bits in groups of {GROUP}; {SCORED} tokens of prose after {PREFIX}; the article's model "
            "is 50 times as large"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, awq, gptq, nearest = (
            score({"technique": name, "group": GROUP}) for name in ("hqq", "awq", "gptq", "rtn")
        )
        worst, near = score(MINIMUM), score({"technique": "hqq", "group": GROUP, "bits": 8})
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, awq.losses, Bar(-BEHIND), "-0.004 nats"),
            parts=(
                ahead("loss below GPTQ's", ours.losses, gptq.losses, paper="+0.015 nats"),
                ahead("loss below round-to-nearest's", ours.losses, nearest.losses),
                ahead("loss below the unrounded weights'", ours.losses, full.losses, None, "-0.023 nats"),
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
