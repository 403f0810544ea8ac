"""PuzzleMoE: accuracy that a mixture of experts keeps when its experts share their bytes two by two."""

from __future__ import annotations

from functools import partial

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.mixtures import MODEL, PREFIX, SCORED, predicted
from thrifty.claims.harness.parts import Bar, ahead, exactly, kept
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import advantage

OURS = {"technique": "puzzlemoe"}
KEPT = 72.6 / 74.1
HEADLINE = "next-token accuracy of the unmerged experts'"
HALF = 0.5


class PuzzleMoeClaim(Claim):
    """Next-token accuracy of the project's small mixture of experts before and after."""

    paper = "Mixtral-8x7B with half its experts' bytes: 72.6 on average over zero-shot tasks, 74.1 unmerged"
    source = "arXiv:2511.04805, abstract and its table of Mixtral"
    rule = "at least 98.0 % of the unmerged model's accuracy is kept"
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
        share = ours.expert_bytes / full.expert_bytes
        return Measurement(
            headline=kept(HEADLINE, ours.right, full.right, Bar(KEPT), "98 %"),
            parts=(
                ahead("loss below the unmerged experts'", ours.losses, full.losses, None),
                ahead("accuracy ahead of means everywhere", ours.right, mean.right),
                ahead("accuracy ahead of the salient weight everywhere", ours.right, salient.right),
                ahead("accuracy of other pairs ahead of these", other.right, ours.right, None, "below 0.3 %"),
            ),
            gates=(exactly("bytes of the experts", share, Bar(HALF, at_least=False), paper="50 %"),),
            controls=(Control("magnitudes replaced by their means", "lose", advantage(mean.right, full.right)),),
            counts={"scored tokens": len(ours.right), "passages": ours.right.contexts},
            setting=setting,
            told="Zero-shot tasks are not to be had here; these experts were trained apart, from random weights.",
        )
