"""PuzzleMoE: what a mixture of experts still predicts when its experts share their bytes two by two."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.mixtures import MODEL, PREFIX, SCORED, predicted
from thrifty.claims.harness.parts import Bar, ahead, exactly, kept
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import advantage

if TYPE_CHECKING:
    from thrifty.models.model import Model

OURS = {"technique": "puzzlemoe"}
KEPT = 72.6 / 74.1
RISE = -math.log(KEPT)  # of a token's loss, in nats, by which the next token keeps 98 % of its probability
HEADLINE = "loss of a token below the unmerged experts'"
HALF = 0.5


class PuzzleMoeClaim(Claim):
    """Losses of the project's small mixture of experts before and after. Its accuracy is shown: in so few passages it
    could not tell 98 % from 90.
    """

    paper = "Mixtral-8x7B with half its experts' bytes: 72.6 on average over zero-shot tasks, 74.1 unmerged"
    source = "arXiv:2511.04805, abstract and its table of Mixtral"
    rule = (
        "the next token keeps 98.0 % of its probability (in the paper accuracy on tasks), which is 0.020 nats a token"
    )
    minutes = 2.0
    models = (MODEL,)

    def measure(self, context: Context) -> Measurement:
        setting = (
            f"the project's mixture of {context.model.nbytes // 1000} kB, trained on this prose; 8 experts of 128 "
            f"neurons; {SCORED} tokens after {PREFIX}; the paper: Mixtral-8x7B on zero-shot tasks"
        )
        if context.model.config.experts is None:
            return Measurement.untestable(HEADLINE, f"a mixture of experts, such as {MODEL}", setting)
        weights = partial(predicted, context)
        full = weights()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, mean, salient = (weights(OURS | own) for own in ({}, {"similarity": 1.0}, {"similarity": 0.0}))
        other = weights(OURS | {"seed": 1})
        plain = weights(_plain(context.model))
        share = ours.expert_bytes / full.expert_bytes
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, Bar(-RISE), "98 % of the accuracy"),
            parts=(
                kept("next-token accuracy of the unmerged experts'", ours.right, full.right, Bar(KEPT), "98 %"),
                ahead("loss below that of means everywhere", ours.losses, mean.losses),
                ahead("loss below that of the salient weight everywhere", ours.losses, salient.losses),
                ahead("loss below that of experts rounded to 4 bits", ours.losses, plain.losses, None),
                exactly("bytes of experts rounded to 4 bits", ours.expert_bytes / plain.expert_bytes, None),
                ahead("loss of other pairs below these", other.losses, ours.losses, None, "below 0.3 % of accuracy"),
            ),
            gates=(exactly("bytes of the experts", share, Bar(HALF, at_least=False), paper="50 %"),),
            controls=(Control("magnitudes replaced by their means", "lose", advantage(mean.losses, full.losses)),),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told="Zero-shot tasks are not to be had here; these experts were trained apart, from random weights.",
        )


def _plain(model: Model) -> dict[str, Any]:
    """Round-to-nearest of the routed experts alone: 5 bits a weight, where a pair's word has 8."""
    return {"technique": "rtn", "group": 32, "skip": [name for name in model.linears if ".mlp.experts." not in name]}
