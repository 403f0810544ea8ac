"""MiLo: perplexity and accuracy that a mixture of experts keeps at 3 bits with compensators of low rank."""

from __future__ import annotations

import math
from functools import partial

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.mixtures import MODEL, PREFIX, SCORED, predicted
from thrifty.claims.harness.parts import Bar, ahead, exactly, kept
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import advantage

DENSE, SPARSE = 16, 16  # an eighth of the width, as the paper's 512 of 4096; and the paper's smaller strategy
OURS = {"technique": "milo", "dense_rank": DENSE, "expert_rank": SPARSE}
BASE = OURS | {"dense_rank": 0, "expert_rank": 0}
KEPT = 0.87  # of the perplexity
HEADLINE = "loss of a token below the 16-bit weights'"
SMALLER = 0.4  # of the bytes: 3.5 bits of 16 are 0.22, compensators of matrices of 128 x 128 the rest


class MiloClaim(Claim):
    """Losses of the project's small mixture of experts before and after."""

    paper = "Mixtral-8x7B at 22 % of its bytes: 87 % of WikiText2 perplexity, 97 % of zero-shot accuracy are kept"
    source = "arXiv:2504.02658, abstract"
    rule = "perplexity at most 1 / 0.87 of the 16-bit weights', which is 0.139 nats a token"
    minutes = 2.0
    models = (MODEL,)

    def measure(self, context: Context) -> Measurement:
        setting = (
            f"the project's mixture of {context.model.nbytes // 1000} kB, trained on this prose; ranks {DENSE} and "
            f"{SPARSE}; {SCORED} tokens after {PREFIX}; the paper: Mixtral-8x7B on WikiText2 and zero-shot tasks"
        )
        if context.model.config.experts is None:
            return Measurement.untestable(HEADLINE, f"a mixture of experts, such as {MODEL}", setting)
        weights = partial(predicted, context)
        full = weights()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, base, turnless = weights(OURS), weights(BASE), weights(OURS | {"iterations": 0})
        near, worst = (
            weights(OURS | {"bits": 8}),
            weights({"technique": "rtn", "bits": 4, "group": 128, "symmetric": True}, BASE),
        )
        bar = Bar(math.log(KEPT))
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, bar, "-0.139 nats"),
            parts=(
                kept("next-token accuracy of the 16-bit weights'", ours.right, full.right, Bar(0.97), "97 %"),
                ahead("loss below that of 3 bits without compensators (HQQ)", ours.losses, base.losses),
                ahead("loss below that of compensators without turns", ours.losses, turnless.losses),
                exactly("bytes of the linears", ours.nbytes / full.nbytes, None, paper="22 %"),
            ),
            gates=(exactly("bytes of the linears, at most", ours.nbytes / full.nbytes, Bar(SMALLER, at_least=False)),),
            controls=(
                Control(
                    "4 bits of RTN, then 3 bits without compensators", "lose", advantage(worst.losses, full.losses)
                ),
                Control("8 bits with compensators", "shown", advantage(near.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told="WikiText2 and zero-shot tasks are not to be had here; the matrices are 32 times narrower.",
        )
