"""H2O: a fifth of the cache keeps the quality, and keeps it better than the newest tokens alone."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context, perplexity, quality_of, recovery_of

PREFIX, SCORED = 2048, 384
KEEP = 0.2
NEAR_FULL = 0.98


class H2oClaim(Claim):
    """Next-token recovery with 20 % of the cache, and the divergence of the newest 20 % alone beside it."""

    paper = (
        "20 % of the KV cache keeps near full quality (OPT, LLaMA, GPT-NeoX; HELM and lm-eval); local alone does not"
    )
    source = "arXiv:2306.14048, abstract and figure 4"
    rule = (
        "quality: next-token recovery ≥ 98 %; choice: less divergence than the newest 20 % alone. "
        "Both: holds; one: partly"
    )
    minutes = 1.0

    def measure(self, context: Context) -> Figures:
        run = context.quality([{"technique": "h2o", "keep": KEEP}], PREFIX, SCORED)
        window = int(KEEP * PREFIX)
        local = {"technique": "streaming", "sinks": 0, "window": window, "renumber": False}
        beside = context.quality([local], PREFIX, SCORED)
        recovery = recovery_of(run)
        full = context.baseline_nll(PREFIX, SCORED)
        return {
            "prefix": PREFIX,
            "scored": SCORED,
            "recovery": recovery.value,
            "low": recovery.low,
            "high": recovery.high,
            "kl": quality_of(run).kl.value,
            "local_kl": quality_of(beside).kl.value,
            "perplexity": perplexity(quality_of(run).nll),
            "full_perplexity": perplexity(full),
        }

    def judge(self, figures: Figures) -> Verdict:
        return combined(figures["recovery"] >= NEAR_FULL, figures["kl"] < figures["local_kl"])

    def tell(self, figures: Figures) -> str:
        return (
            f"recovery {figures['recovery']:.1%} ({figures['low']:.1%} to {figures['high']:.1%}), KL "
            f"{figures['kl']:.3f} (newest alone {figures['local_kl']:.3f}), perplexity "
            f"{figures['full_perplexity']:.2f} → {figures['perplexity']:.2f}"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"keep = 0.2, next token of prose, {figures['scored']:.0f} after {figures['prefix']:.0f} compressed; its "
            "throughput against other servers is not measured"
        )
