"""MiniKV: the cache 86 % smaller, and 98.5 % of the quality stays."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context, quality_of, recovery_of

PREFIX, SCORED = 4096, 513  # the last step reads 4096 + 512 tokens, the paper's setting for memory
RECOVERED = 34.65 / 35.19  # LongBench, pyramid over the full cache
SMALLER = 0.86
LAYERS = ("pyramid", "uniform")


class MinikvClaim(Claim):
    """Next-token recovery and bytes of the cache at the paper's lengths; the uniform allocation beside the pyramid."""

    paper = (
        "86 % less KV cache, over 98.5 % of the accuracy (Llama-2-7B-chat, LongBench: 34.65 of 35.19; uniform 33.71)"
    )
    source = "arXiv:2411.18077v2, abstract and its tables of LongBench and memory"
    rule = (
        "quality: next-token recovery ≥ 34.65/35.19 = 98.5 %; memory: cache ≥ 86 % smaller after 4096 + 512 tokens. "
        "Both: holds; one: partly"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Figures:
        figures: Figures = {"prefix": PREFIX, "scored": SCORED}
        full = context.baseline(PREFIX, SCORED).run
        assert full is not None, "the baseline was measured"
        for layers in LAYERS:
            run = context.quality([{"technique": "minikv", "layers": layers}], PREFIX, SCORED)
            recovery, suffix = recovery_of(run), "" if layers == LAYERS[0] else f"_{layers}"
            figures[f"recovery{suffix}"], figures[f"kl{suffix}"] = recovery.value, quality_of(run).kl.value
            figures[f"low{suffix}"], figures[f"high{suffix}"] = recovery.low, recovery.high
            figures[f"smaller{suffix}"] = 1 - run.cache_bytes / full.cache_bytes
        return figures | {"full_bytes": full.cache_bytes}

    def judge(self, figures: Figures) -> Verdict:
        return combined(figures["recovery"] >= RECOVERED, figures["smaller"] >= SMALLER)

    def tell(self, figures: Figures) -> str:
        return "; ".join(
            f"{layers}: recovery {figures[f'recovery{suffix}']:.1%} ({figures[f'low{suffix}']:.1%} to "
            f"{figures[f'high{suffix}']:.1%}), KL {figures[f'kl{suffix}']:.3f}, cache "
            f"{figures[f'smaller{suffix}']:.1%} smaller"
            for layers, suffix in zip(LAYERS, ("", "_uniform"), strict=True)
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"the paper's options and lengths; next token of prose (not LongBench), {figures['scored']:.0f} after "
            f"{figures['prefix']:.0f} compressed; bytes are the ledger's: pages and positions counted"
        )
