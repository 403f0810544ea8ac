"""Round-to-nearest: what 4 bits a weight cost a model in perplexity."""

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
from thrifty.claims.harness.weights import MINIMUM, PREFIX, Compressed, WeightScores

GROUP, FINE = 128, 32
RISE = math.log(6.29 / 5.68)  # of a token's loss, in nats
HEADLINE = "loss of a token below the unrounded weights'"
SMALLER = 0.3  # 4 bits and 32 of a group's scale and minimum, of 16 bits: 0.27


class RtnClaim(Claim):
    """Losses of the off-grid view, whose weights do not lie on a 4-bit grid already, before and after."""

    paper = "LLaMA-7B, WikiText2 perplexity: 5.68 in fp16, 6.29 at 4 bits (+ 10.7 %)"
    source = "the GPTQ authors' repository, table of LLaMA; arXiv:2210.17323"
    rule = "perplexity rises by at most 10.7 %, which is 0.102 nats a token"
    minutes = 1.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)

        def rounded(**options: Any) -> Compressed:
            return score({"technique": "rtn", **options})

        setting = (
            f"off-grid view, groups of {GROUP}, embedding and logits as they are; {SCORED} tokens of prose after "
            f"{PREFIX}; the paper rounds whole rows of a larger model"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours = rounded(bits=4, group=GROUP)
        fine, near, worst = rounded(bits=4, group=FINE), rounded(bits=8, group=FINE), score(MINIMUM)
        shipped = context.losses([], prefix=PREFIX)
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, Bar(-RISE), "-0.102 nats"),
            parts=(
                ahead(f"the same in groups of {FINE}", fine.losses, full.losses, Bar(-RISE)),
                ahead(f"loss in groups of {FINE} below that of {GROUP}", fine.losses, ours.losses),
            ),
            gates=(exactly("bytes of the linears", ours.nbytes / full.nbytes, Bar(SMALLER, at_least=False)),),
            controls=(
                Control("4 bits without minimum, embedding too", "lose", advantage(worst.losses, full.losses)),
                Control("8 bits", "hold", advantage(near.losses, full.losses)),
                Control("the view itself, against the weights as shipped", "shown", advantage(full.losses, shipped)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
        )
