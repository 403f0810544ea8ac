"""HeadKV-R2: 1.5 % of the cache keeps 97 % of the score."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, ahead, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered
from thrifty.evaluation.forcing import MeasurementError

SHARE, WINDOW, SLOTS = 0.015, 8, 128
LARGE = 4  # times the paper's share
RECOVERED = 0.97
OTHERS = ("snapkv", "ada-kv")
PAPER = 8192  # 128 slots are 1.5 % of so many tokens
HEADLINE = "answers of the full cache's with 1.5 % of it"


class HeadkvR2Claim(Claim):
    """On a model that answers the probe's riddles freely; one that cannot has no scores of this kind."""

    paper = (
        "97 % of the full cache's score with 1.5 % of it: six LongBench sets, Llama-3-8B, 128 slots a head: 32.00, "
        "Ada-SnapKV 28.52, SnapKV 26.43, full 32.90"
    )
    source = "arXiv:2410.19258, abstract and table 1"
    rule = "with 1.5 % kept, at least 97 % of the full cache's right answers, and more than SnapKV's and Ada-KV's"
    minutes = 8.0
    models = ("qwen2.5-coder-1.5b",)

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        try:
            context.heads("r2")
        except MeasurementError as error:
            return Measurement.untestable(HEADLINE, str(error))
        score = Reading(context, length)
        capacity = max(2 * WINDOW, round(SHARE * length))
        setting = (
            f"{capacity} slots a head (the paper: {SLOTS} of about {PAPER}), window {WINDOW}, β at its default (the "
            f"paper: the best of eight), {length} tokens, question last; {score.told}"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours = score([_table("headkv-r2", capacity)])
        rivals = {name: score([_table(name, capacity)]) for name in OTHERS}
        whole = [{"technique": "headkv-r2", "window": WINDOW, "keep": 1.0}]
        tested = controlled(score, full, ours, capacity=capacity, length=length, whole=whole)
        large = score([_table("headkv-r2", LARGE * capacity)])
        return Measurement(
            headline=kept(HEADLINE, ours, full, Bar(RECOVERED), "97.3 %"),
            parts=(kept(f"the same with {LARGE * SHARE:.0%} of it", large, full, None),),
            gates=(
                *(ahead(f"ahead of {name}'s, points", ours, rivals[name]) for name in OTHERS),
                tested.gate,
                context.promise([_table("headkv-r2", capacity)], capacity / length, length=length),
            ),
            controls=tested.controls,
            counts=counted(ours),
            setting=setting,
        )


def _table(name: str, capacity: int) -> dict[str, Any]:
    return {"technique": name, "capacity": capacity, "window": WINDOW}
