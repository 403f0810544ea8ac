"""Dimple: confident decoding takes a third of the passes that an answer has tokens, and answers as well."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.letters import MODEL, TWIN, Letters, asked, lettered
from thrifty.claims.harness.parts import Bar, ahead, kept, times
from thrifty.claims.harness.statistics import advantage
from thrifty.decoding.canvas import RULES
from thrifty.models.loading import load

PLACES = 12  # of a canvas: with the token before it, the longest answer and its end
OURS = {"technique": "dimple", "length": PLACES}
EVEN = OURS | {"threshold": 0.0, "steps": PLACES}  # the schedule alone, by which the rules are compared
SLOW = {"technique": "lavida", "length": PLACES, "ratio": 1.0}  # the surest place, pass after pass


class DimpleClaim(Claim):
    """Exact answers to held-out questions, and the passes that they took."""

    paper = "the passes of an answer are about 1/3 of its length, with a threshold of 0.95"
    source = "arXiv:2505.16990, abstract and section 3.3 (by the project's notes of it and the released code)"
    rule = "passes at most 1/3 of the answer's tokens, at 95 % or more of the exact answers of one place a pass"
    models = (MODEL,)
    minutes = 1.5

    def measure(self, context: Context) -> Measurement:
        if context.model.config.mask_id is None:
            return Measurement.untestable(
                "passes a token of the answer", f"a model that fills in masks, such as {MODEL}"
            )
        items = asked(context.budget.answers, context.seed)
        with closing(context.fresh(context.model)) as engine:

            def made(table: dict[str, Any]) -> Letters:
                context.say(str(table))
                return lettered(engine, items, [table])

            ours, slow = made(OURS), made(SLOW)
            rules = {rule: made(EVEN | {"rule": rule}) for rule in RULES}
        with closing(context.fresh(load(TWIN))) as engine:
            twin = lettered(engine, items)
        best = rules["confidence"].right
        return Measurement(
            headline=times("passes a token of the answer", ours.passes, ours.tokens, Bar(1 / 3, at_least=False), "1/3"),
            parts=(
                kept("exact answers of the autoregressive twin's", ours.right, twin.right, None),
                *(
                    ahead(f"by the schedule alone, confidence ahead of {rule}", best, rules[rule].right, None)
                    for rule in RULES[1:]
                ),
            ),
            gates=(kept("exact answers of one place a pass's", ours.right, slow.right, Bar(0.95)),),
            controls=(
                Control("random places by the schedule", "lose", advantage(rules["random"].right, slow.right)),
                Control("the twin", "shown", advantage(twin.right, slow.right)),
            ),
            counts={"questions": len(items)},
            setting=(
                f"{context.name}, trained by this project on questions of these kinds; canvases of {PLACES} places, "
                "answers of 3 to 12 letters; the pass that computes the rows that stay counts, the prompt's does not"
            ),
        )
