"""HeadKV-R2: 1.5 % of the cache keeps 97 % of the score."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness import rivals
from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context

QUESTION, ASKED, SHARE, WINDOW = 3900, 16, 0.015, 8
LARGE = 4  # times the paper's share
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
        "with 1.5 % kept, ≥ 97 % of the full cache's recall, and ahead of SnapKV and Ada-KV: holds; one of the two: "
        "partly; else it does not hold here"
    )
    minutes = 0.6
    model = "recall-2m"

    def measure(self, context: Context) -> Figures:
        rivals.score_heads(context, "r2")
        small = round(SHARE * QUESTION)
        tables = {name: [_table(name, small)] for name in ("headkv-r2", *OTHERS)}
        tables |= {f"{name}_large": [_table(name, LARGE * small)] for name in tables}
        return {"small": small} | rivals.recalls(context, {"full": [], **tables}, QUESTION, ASKED)

    def judge(self, figures: Figures) -> Verdict:
        full, own = figures["full_recall"], figures["headkv-r2_recall"]
        return combined(
            full > 0 and own >= RECOVERY * full,
            all(own > figures[f"{name}_recall"] for name in OTHERS),
        )

    def tell(self, figures: Figures) -> str:
        def shares(ending: str) -> str:
            others = ", ".join(f"{name} {figures[f'{name}{ending}_recall']:.0%}" for name in OTHERS)
            return f"{figures[f'headkv-r2{ending}_recall']:.0%} ({others})"

        return (
            f"one key recalled in {figures['full_recall']:.0%} (full), with 1.5 % kept in {shares('')}, with "
            f"{LARGE * SHARE:.0%} in {shares('_large')}"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"{figures['asked']:.0f} keys in {figures['question']:.0f} tokens, question last, {figures['small']:.0f} "
            f"slots a head in the mean, window {WINDOW}, β at its default (the paper: the best of eight)"
        )


def _table(name: str, capacity: int) -> dict[str, Any]:
    return {"technique": name, "capacity": capacity, "window": WINDOW}
