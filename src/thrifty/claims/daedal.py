"""DAEDAL: a canvas that finds its own length answers as well as the best fixed length, from a short first one."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.letters import MODEL, Letters, asked, lettered
from thrifty.claims.harness.parts import Bar, ahead, kept, times
from thrifty.claims.harness.statistics import advantage

FIXED = (4, 8, 12, 16, 24, 32)  # places, of which one is chosen on items that judge nothing
FIRST = 4  # places at first


class DaedalClaim(Claim):
    """Exact answers to held-out questions, with a canvas that grows and with fixed ones."""

    paper = "as good as or better than fixed lengths tuned between 64 and 2048, on 4 sets of maths and code"
    source = "arXiv:2508.00819, abstract (by the project's notes of it and the released code)"
    rule = "exact answers at least 95 % of those of the best fixed length, which other items chose"
    models = (MODEL,)
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        if context.model.config.mask_id is None:
            return Measurement.untestable(
                "exact answers of the best fixed length's", f"a model that fills in masks, such as {MODEL}"
            )
        items = asked(context.budget.answers, context.seed)
        tuning = asked(context.budget.answers, context.seed, tuning=True)

        with closing(context.fresh(context.model)) as engine:

            def made(judging: bool = True, **options: Any) -> Letters:
                context.say(f"{options}, {'judged' if judging else 'tuning'} items")
                return lettered(engine, items if judging else tuning, [{"technique": "daedal", **options}])

            scores = {places: made(False, initial=places, length=places).right.mean for places in FIXED}
            best = max(FIXED, key=scores.__getitem__)
            rival, first = made(initial=best, length=best), made(initial=FIRST, length=FIRST)
            ours, hasty = made(initial=FIRST), made(initial=FIRST, sure=0.0)
        return Measurement(
            headline=kept("exact answers of the best fixed length's", ours.right, rival.right, Bar(0.95)),
            parts=(
                ahead(f"ahead of {FIRST} places, canvas after canvas", ours.right, first.right, None),
                times("passes of the best fixed length's", ours.passes, rival.passes, None),
            ),
            controls=(
                Control("all places filled in at once", "lose", advantage(hasty.right, ours.right)),
                Control(f"{FIRST} places, never more", "shown", advantage(first.right, rival.right)),
            ),
            counts={"questions": len(items), "tuning questions": len(tuning)},
            setting=(
                f"{context.name}, trained by this project; {FIRST} places at first, 4 more at a time, at most 63; "
                f"fixed lengths {', '.join(map(str, FIXED))}, of which other items chose {best}; the paper: 64 at first"
            ),
            told="a canvas that is full and has no end token is followed by another one, so a short one loses less "
            "here than where an answer ends with its canvas",
        )
