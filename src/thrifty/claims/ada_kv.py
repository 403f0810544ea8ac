"""Ada-KV: at the same budget, sharing slots out among heads is better than SnapKV's equal shares."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from thrifty.claims.harness.claim import Claim, Figures, Verdict
from thrifty.claims.harness.context import Context, quality_of, recovery_of

PREFIX, SCORED, PARTS = 1024, 256, 3
KEEP = 0.2


class AdaKvClaim(Claim):
    """Divergence of both policies on several passages whose end asks nothing."""

    paper = "LongBench without the query, Llama-3.1-8B, 20 % of the cache: 42.87, SnapKV 41.29 (full 49.20)"
    source = "arXiv:2407.11550, question-agnostic results"
    rule = "KL below SnapKV's on every passage: holds; on average only: partly; else it does not hold here"
    minutes = 1.0

    def measure(self, context: Context) -> Figures:
        figures: Figures = {"prefix": PREFIX, "scored": SCORED, "parts": PARTS}
        for name in ("snapkv", "ada-kv"):
            runs = [context.quality([_table(name)], PREFIX, SCORED, part) for part in range(PARTS)]
            for part, run in enumerate(runs):
                figures[f"{name}_kl_{part}"] = quality_of(run).kl.value
            figures[f"{name}_recovery"] = fmean(recovery_of(run).value for run in runs)
            figures[f"{name}_bytes"] = fmean(run.cache_bytes for run in runs)
        return figures

    def judge(self, figures: Figures) -> Verdict:
        ours, theirs = _divergences(figures, "ada-kv"), _divergences(figures, "snapkv")
        if all(mine < other for mine, other in zip(ours, theirs, strict=True)):
            return Verdict.HOLDS
        return Verdict.PARTLY if fmean(ours) < fmean(theirs) else Verdict.FAILS

    def tell(self, figures: Figures) -> str:
        ours, theirs = _divergences(figures, "ada-kv"), _divergences(figures, "snapkv")
        pairs = ", ".join(f"{mine:.3f} / {other:.3f}" for mine, other in zip(ours, theirs, strict=True))
        return (
            f"KL of Ada-KV / SnapKV: {pairs}; mean {fmean(ours):.3f} / {fmean(theirs):.3f}; recovery "
            f"{figures['ada-kv_recovery']:.1%} / {figures['snapkv_recovery']:.1%}; bytes "
            f"{figures['ada-kv_bytes'] / 1e6:.1f} / {figures['snapkv_bytes'] / 1e6:.1f} MB"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"keep = 0.2, {figures['parts']:.0f} passages of prose, {figures['scored']:.0f} tokens after "
            f"{figures['prefix']:.0f} compressed, no question at the end; LongBench is beyond this model"
        )


def _table(name: str) -> dict[str, Any]:
    return {"technique": name, "keep": KEEP}


def _divergences(figures: Figures, name: str) -> list[float]:
    return [figures[f"{name}_kl_{part}"] for part in range(int(figures["parts"]))]
