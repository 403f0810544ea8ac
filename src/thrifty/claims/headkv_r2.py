"""HeadKV-R2: 1.5 % of the cache keeps 97 % of the score."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness import rivals
from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context

SMALL, LARGE, WINDOW = 24, 60, 8  # of 480 tokens: 5 % and 12.5 %; 1.5 % would be less than the window
RECOVERY = 0.97
OTHERS = ("snapkv", "ada-kv")


class HeadkvR2Claim(Claim):
    """Recall where the model can recall at all, against the same run's full cache, SnapKV and Ada-KV."""

    paper = (
        "97 % of the full cache's score with 1.5 % of it: six LongBench sets, Llama-3-8B, 128 slots a head: 32.00, "
        "Ada-SnapKV 28.52, SnapKV 26.43, full 32.90"
    )
    source = "arXiv:2410.19258, abstract and table 1"
    rule = (
        "≥ 97 % of the full cache's recall with 5 % kept, and ahead of SnapKV and Ada-KV with 12.5 %: holds; one of "
        "the two: partly; else it does not hold here"
    )
    minutes = 0.6

    def measure(self, context: Context) -> Figures:
        rivals.score_heads(context, "r2")
        tables = {"small": [_table("headkv-r2", SMALL)]}
        tables |= {name: [_table(name, LARGE)] for name in ("headkv-r2", *OTHERS)}
        return rivals.recalls(context, {"full": [], **tables})

    def judge(self, figures: Figures) -> Verdict:
        full = figures["full_recall"]
        return combined(
            full > 0 and figures["small_recall"] >= RECOVERY * full,
            all(figures["headkv-r2_recall"] > figures[f"{name}_recall"] for name in OTHERS),
        )

    def tell(self, figures: Figures) -> str:
        others = ", ".join(f"{name} {figures[f'{name}_recall']:.0%}" for name in OTHERS)
        return (
            f"one key recalled in {figures['full_recall']:.0%} (full), {figures['small_recall']:.0%} with {SMALL} "
            f"slots a head, {figures['headkv-r2_recall']:.0%} with {LARGE} ({others})"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"{figures['asked']:.0f} keys in {figures['question']:.0f} tokens, question last, window {WINDOW}, β at "
            "its default (the paper: the best of eight); 1.5 % of such a prompt is 7 slots, less than the window"
        )


def _table(name: str, capacity: int) -> dict[str, Any]:
    return {"technique": name, "capacity": capacity, "window": WINDOW}
