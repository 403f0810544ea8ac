"""HeadKV-R: slots shared out by measured retrieval of heads beat shares by layer or by need."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import ahead, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered
from thrifty.evaluation.forcing import MeasurementError

CAPACITY, LARGER, WINDOW = 64, 128, 8
OTHERS = ("snapkv", "pyramidkv", "ada-kv")
PAPER = 8192  # the paper's six LongBench sets have about so many tokens
HEADLINE = "answers ahead of the best of SnapKV, PyramidKV and Ada-KV, points"


class HeadkvClaim(Claim):
    """Four techniques with the same window and the same mean budget. Heads are probed with texts of their own."""

    paper = "LongBench and LooGLE questions, Llama-3-8B, 64 and 128 slots a head: ahead of SnapKV, PyramidKV and Ada-KV"
    source = "arXiv:2410.19258, main results"
    rule = "with 64 slots a head in the mean, more right answers than the best of the three, the question standing last"
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        try:
            context.heads("r")
        except MeasurementError as error:
            return Measurement.untestable(HEADLINE, str(error))
        score = Reading(context, length)
        setting = (
            f"{CAPACITY} slots a head, window {WINDOW}, β at its default (the paper: best of eight), {length} tokens, "
            f"question last; {score.told}"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours = score([_table("headkv")])
        rivals = {name: score([_table(name)]) for name in OTHERS}
        best = max(rivals, key=lambda name: rivals[name].mean)
        whole = [{"technique": "headkv", "window": WINDOW, "keep": 1.0}]
        tested = controlled(score, full, ours, capacity=CAPACITY, length=length, whole=whole)
        larger = score([_table("headkv", LARGER)])
        return Measurement(
            headline=ahead(HEADLINE, ours, rivals[best]),
            parts=(
                *(ahead(f"ahead of {name}'s, points", ours, rivals[name]) for name in OTHERS if name != best),
                kept("answers of the full cache's", ours, full, None),
                kept(f"answers of the full cache's with {LARGER} slots", larger, full, None),
            ),
            gates=(tested.gate, context.promise([_table("headkv")], CAPACITY / length, length=length)),
            controls=tested.controls,
            counts=counted(ours),
            setting=setting,
            told=f"the best of the three is {best}",
        )


def _table(name: str, capacity: int = CAPACITY) -> dict[str, Any]:
    return {"technique": name, "capacity": capacity, "window": WINDOW}
