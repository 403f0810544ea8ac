"""PyramidKV: at a small budget, more slots for lower layers beat the same for all."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, Part, ahead, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered

CAPACITY, LARGE = 64, 2048  # the paper's smallest and largest budgets, slots a layer
WINDOW = 8
PAPER = 8192  # LongBench's texts have about so many tokens
HEADLINE = "answers ahead of SnapKV's, points"


class PyramidkvClaim(Claim):
    """SnapKV and PyramidKV with the same window and the same mean budget."""

    paper = "LongBench, Llama-3-8B-Instruct, 64 slots a layer: 34.76, SnapKV 33.05 (full 41.46); 2048: 41.49, 41.35"
    source = "arXiv:2406.02069, main results; read in a secondary summary, not in the paper"
    rule = "with 64 slots a layer in the mean, more right answers than SnapKV with 64, the question standing last"
    minutes = 1.2

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        score = Reading(context, length)
        setting = f"{CAPACITY} slots a layer, window {WINDOW} for both, {length} tokens, question last; {score.told}"
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, rival = score([_table("pyramidkv")]), score([_table("snapkv")])
        whole = [{"technique": "pyramidkv", "window": WINDOW, "keep": 1.0}]
        tested = controlled(score, full, ours, capacity=CAPACITY, length=length, whole=whole)
        loss = {name: context.losses([_table(name)]) for name in ("pyramidkv", "snapkv")}
        large = [_large(score, length)] if length > LARGE else []
        return Measurement(
            headline=ahead(HEADLINE, ours, rival, paper="+1.71 points of 41.46"),
            parts=(
                kept("answers of the full cache's", ours, full, Bar(34.76 / 41.46), "83.8 %, SnapKV 79.7 %"),
                kept("SnapKV's of the full cache's", rival, full, None, "79.7 %"),
                ahead("next tokens' loss below SnapKV's", loss["pyramidkv"], loss["snapkv"]),
                *large,
            ),
            gates=(tested.gate, context.promise([_table("pyramidkv")], CAPACITY / length, length=length)),
            controls=tested.controls,
            counts=counted(ours) | {"scored tokens": len(loss["pyramidkv"])},
            setting=setting,
        )


def _table(name: str, capacity: int = CAPACITY) -> dict[str, Any]:
    return {"technique": name, "capacity": capacity, "window": WINDOW}


def _large(score: Any, length: int) -> Part:
    """The same at the paper's largest budget, where it is about level."""
    ours, rival = score([_table("pyramidkv", LARGE)]), score([_table("snapkv", LARGE)])
    return ahead(f"ahead of SnapKV's with {LARGE} of {length} slots, points", ours, rival, None, "+0.14 points")
