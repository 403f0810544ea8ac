"""KVMerger: merged neighbours keep more than evicted ones, at half and at a third of the cache."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Part, ahead, exactly, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered
from thrifty.errors import RecipeError

HALF, THIRD = 0.5, 0.35  # the paper's two budgets
BOUND = 0.75  # its bound of similarity
PAPER = 4096  # Llama-2's context
HEADLINE = "answers ahead of H2O's with half kept, points"


class KvmergerClaim(Claim):
    """The method as it is published (merged values n times as large, sigma by its formula); Thrifty's own correction of
    the mass is shown beside it and decides nothing.
    """

    paper = "9 LongBench sets: 50 % of the cache 35.02 (H2O 33.49; Llama-2-7B-chat), 35 % 35.04 (H2O 13.48; Mistral-7B)"
    source = "arXiv:2407.08454; read in reviews and reading notes alone, and there is no official code"
    rule = "as published, more right answers than H2O with half of the cache, and with 35 % of it, the question last"
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        score = Reading(context, length)
        setting = (
            f"{length} tokens, question last, kept shares are means over the layers and met exactly, where the paper "
            f"has one bound of {BOUND}; H2O goes on evicting while it answers; {score.told}"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        try:
            third, ours = score([_published(THIRD)]), score([_published(HALF)])
        except RecipeError as error:  # too few layers: three stay whole
            return Measurement.untestable(HEADLINE, str(error), setting)
        rival, third_rival = score([_h2o(HALF)]), score([_h2o(THIRD)])
        tested = controlled(score, full, ours, keep=HALF, length=length, whole=[_published(1.0)])
        loss = context.losses([_h2o(HALF)])
        return Measurement(
            headline=ahead(HEADLINE, ours, rival, paper="+1.53 points"),
            parts=(
                ahead("Thrifty's own correction: answers ahead of H2O's, points", score([_own(HALF)]), rival),
                ahead("next tokens' loss below H2O's", context.losses([_published(HALF)]), loss),
                ahead("Thrifty's own correction: loss below H2O's", context.losses([_own(HALF)]), loss),
                kept("answers of the full cache's", ours, full, None),
                _bound(context, length),
            ),
            gates=(
                ahead("ahead of H2O's with 35 % kept, points", third, third_rival, paper="+21.56"),
                tested.gate,
                context.promise([_published(HALF)], HALF, length=length),
            ),
            controls=tested.controls,
            counts=counted(ours) | {"scored tokens": len(loss)},
            setting=setting,
        )


def _published(keep: float) -> dict[str, Any]:
    return {"technique": "kvmerger", "keep": keep, "mass": "published"}


def _own(keep: float) -> dict[str, Any]:
    return {"technique": "kvmerger", "keep": keep, "mass": "bias"}


def _h2o(keep: float) -> dict[str, Any]:
    return {"technique": "h2o", "keep": keep}


def _bound(context: Context, length: int) -> Part:
    """What the paper's bound keeps of this model's cache: there a budget of about a half."""
    table = {"technique": "kvmerger", "threshold": BOUND, "mass": "published"}
    share = context.held([table], length) / context.held([], length)
    return exactly(f"bytes of the full cache's with the bound of {BOUND}", share, None, paper="about 50 %")
