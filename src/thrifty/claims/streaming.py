"""StreamingLLM: four sinks and a window keep perplexity stable; the window alone collapses."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context, perplexity, quality_of

PREFIX, SCORED = 4096, 512
CACHE = 1024  # slots: the paper's setting of table 1
SINKS = 4
STABLE, COLLAPSED = 1.1, 2.0


class StreamingClaim(Claim):
    """Perplexity far beyond the window: with everything, with sinks and window, and with the window alone."""

    paper = "Llama-2-13B on PG19: perplexity 5.40 with 4 sinks + 1020 tokens, 5158 with 1024 tokens alone"
    source = "arXiv:2309.17453, table 1"
    rule = (
        "stable: perplexity with sinks ≤ 1.1 × the full cache's; collapse: without sinks ≥ 2 × that with them. "
        "Both: holds; one: partly"
    )
    minutes = 1.5

    def measure(self, context: Context) -> Figures:
        figures: Figures = {"scored": SCORED, "prefix": PREFIX}
        figures["full"] = perplexity(context.baseline_nll(PREFIX, SCORED))
        for name, sinks in (("sinks", SINKS), ("alone", 0)):
            table = {"technique": "streaming", "sinks": sinks, "window": CACHE - sinks}
            run = context.quality([table], PREFIX, SCORED)
            figures[name] = perplexity(quality_of(run).nll)
            figures[f"{name}_kl"] = quality_of(run).kl.value
        return figures

    def judge(self, figures: Figures) -> Verdict:
        stable = figures["sinks"] <= STABLE * figures["full"]
        return combined(stable, figures["alone"] >= COLLAPSED * figures["sinks"])

    def tell(self, figures: Figures) -> str:
        return (
            f"perplexity {figures['full']:.2f} full, {figures['sinks']:.2f} with sinks, "
            f"{figures['alone']:.2f} without; KL {figures['sinks_kl']:.3f} and {figures['alone_kl']:.3f}"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"4 + 1020 against 0 + 1024 slots, {figures['scored']:.0f} tokens of prose after {figures['prefix']:.0f}; "
            "the prompt attends densely; 4 million tokens are beyond the context"
        )
