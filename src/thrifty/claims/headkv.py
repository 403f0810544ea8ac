"""HeadKV-R: slots shared out by measured retrieval of heads beat shares by layer or by need."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness import rivals
from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context

CAPACITY, WINDOW = 64, 8
OTHERS = ("snapkv", "pyramidkv", "ada-kv")


class HeadkvClaim(Claim):
    """Four techniques with the same window and the same mean budget."""

    paper = "LongBench and LooGLE questions, Llama-3-8B, 64 and 128 slots a head: ahead of SnapKV, PyramidKV and Ada-KV"
    source = "arXiv:2410.19258, main results"
    rule = (
        "at 64 slots a head, recall above all three and KL below all three: holds; one of the two: partly; else it "
        "does not hold here"
    )
    minutes = 1.2

    def measure(self, context: Context) -> Figures:
        rivals.score_heads(context, "r")
        tables = {name: [_table(name)] for name in ("headkv", *OTHERS)}
        figures = rivals.recalls(context, {"full": [], **tables})
        return figures | rivals.divergences(context, tables)

    def judge(self, figures: Figures) -> Verdict:
        return combined(
            all(figures["headkv_recall"] > figures[f"{name}_recall"] for name in OTHERS),
            all(figures["headkv_kl"] < figures[f"{name}_kl"] for name in OTHERS),
        )

    def tell(self, figures: Figures) -> str:
        recall = ", ".join(f"{name} {figures[f'{name}_recall']:.0%}" for name in ("headkv", *OTHERS, "full"))
        divergence = ", ".join(f"{name} {figures[f'{name}_kl']:.3f}" for name in ("headkv", *OTHERS))
        return f"one key recalled: {recall}; KL on prose: {divergence}"

    def setting(self, figures: Figures) -> str:
        return (
            f"{CAPACITY} slots a head in the mean, window {WINDOW}, β at its default (the paper: the best of eight); "
            f"{figures['asked']:.0f} keys in {figures['question']:.0f} tokens, question last; KL of "
            f"{figures['scored']:.0f} tokens after {figures['prefix']:.0f} compressed, {figures['parts']:.0f} passages"
        )


def _table(name: str) -> dict[str, Any]:
    return {"technique": name, "capacity": CAPACITY, "window": WINDOW}
