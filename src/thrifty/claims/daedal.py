"""DAEDAL: a canvas that finds its own length answers as well as the best fixed length, from a short first one."""

from __future__ import annotations

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
        items = asked(context.budget.answers, context.seed)
        tuning = asked(context.budget.answers, context.seed, tuning=True)

        def fixed(places: int, judging: bool = True, **options: Any) -> Letters:
            context.say(f"{places} places, {'judged' if judging else 'tuning'} items")
            table = {"technique": "daedal", "initial": places, "length": places, **options}
            return lettered(context.engine, items if judging else tuning, [table])

        best = max(FIXED, key=lambda places: fixed(places, judging=False).right.mean)
        rival, first = fixed(best), fixed(FIRST)
        ours = lettered(context.engine, items, [{"technique": "daedal", "initial": FIRST}])
        hasty = lettered(context.engine, items, [{"technique": "daedal", "initial": FIRST, "sure": 0.0}])
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
