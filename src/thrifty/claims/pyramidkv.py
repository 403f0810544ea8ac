"""PyramidKV: at a small budget, more slots for lower layers beat the same for all."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness import rivals
from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context

CAPACITY = 64  # the paper's smallest setting, slots a layer
WINDOW = 8


class PyramidkvClaim(Claim):
    """SnapKV and PyramidKV with the same window and the same mean budget."""

    paper = "LongBench, Llama-3-8B-Instruct, 64 slots a layer: 34.76, SnapKV 33.05 (full 41.46)"
    source = "arXiv:2406.02069, main results"
    rule = (
        "at 64 slots a layer, KL below SnapKV's and recall above it: holds; one of the two: partly; else it does not "
        "hold here"
    )
    minutes = 0.6

    def measure(self, context: Context) -> Figures:
        tables = {name: [_table(name)] for name in ("pyramidkv", "snapkv")}
        figures = rivals.recalls(context, {"full": [], **tables})
        return figures | rivals.divergences(context, tables)

    def judge(self, figures: Figures) -> Verdict:
        return combined(
            figures["pyramidkv_kl"] < figures["snapkv_kl"], figures["pyramidkv_recall"] > figures["snapkv_recall"]
        )

    def tell(self, figures: Figures) -> str:
        return (
            f"KL {figures['pyramidkv_kl']:.3f}, SnapKV {figures['snapkv_kl']:.3f}; one key recalled in "
            f"{figures['pyramidkv_recall']:.0%}, SnapKV {figures['snapkv_recall']:.0%} (full "
            f"{figures['full_recall']:.0%})"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"{CAPACITY} slots a layer in the mean, window {WINDOW}; {figures['asked']:.0f} keys in "
            f"{figures['question']:.0f} tokens, question last; KL of {figures['scored']:.0f} tokens after "
            f"{figures['prefix']:.0f} compressed, {figures['parts']:.0f} passages; LongBench is beyond this model"
        )


def _table(name: str) -> dict[str, Any]:
    return {"technique": name, "capacity": CAPACITY, "window": WINDOW}
