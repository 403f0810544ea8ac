"""AWQ: how much of what rounding to the nearest costs is saved by scaling columns first."""

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

OURS = {"technique": "awq", "group": 128}
NEAREST = {"technique": "rtn", "group": 128}
GPTQ = {"technique": "gptq", "group": 128}
SHARE = math.log(5.60 / 5.47) / math.log(5.73 / 5.47)  # 0.51 of the rise in a token's loss
HEADLINE = "loss of a token below 0.51 of round-to-nearest's rise"


class AwqClaim(Claim):
    """Losses of the off-grid view at 4 bits beside those of round-to-nearest and GPTQ at equal bits."""

    paper = "Llama-2-7B, WikiText2 perplexity, groups of 128: 5.47 in fp16; 4 bits 5.60 (RTN 5.73), 3 bits 6.24 (6.66)"
    source = "arXiv:2306.00978, table of Llama-2 perplexities; figures at second hand, not read again"
    rule = "the loss of a token rises by at most 0.51 of what it rises with round-to-nearest at equal bits"
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, 4 bits in groups of 128, calibrated on 4096 tokens of the package's own text; {SCORED} "
            f"tokens of prose after {PREFIX}; the paper's model is 50 times as large"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        nearest, ours, gptq = score(NEAREST), score(OURS), score(GPTQ)
        scaled = score(OURS | {"clip": False})
        worst, near = score(MINIMUM), score(OURS | {"bits": 8})
        few, few_nearest = score(OURS | {"bits": 3}), score(NEAREST | {"bits": 3})
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, allowed(full.losses, nearest.losses, SHARE), Bar(0.0)),
            parts=(
                ahead("loss below round-to-nearest's", ours.losses, nearest.losses, paper="+0.023 nats"),
                ahead("loss below the unrounded weights'", ours.losses, full.losses, None, "-0.023 nats"),
                ahead("loss below GPTQ's", ours.losses, gptq.losses, None, "+0.016 nats"),
                ahead("at 3 bits, loss below round-to-nearest's", few.losses, few_nearest.losses, paper="+0.065 nats"),
                ahead("without cutting groups, below round-to-nearest's", scaled.losses, nearest.losses, None),
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
