"""KIVI: 2 bits a number keep the quality, and the peak of memory falls 2.6 times, weights included."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context, quality_of, recovery_of

PREFIX, SCORED = 2048, 384
# An A100 of 80 GB holds 5.9 times the 13.5 GB of Llama-2-7B: the paper's peak is measured as batches fill it.
MEMORY_OF_WEIGHTS = 5.9
SMALLEST_RECOVERY = 12.74 / 13.50  # GSM8K, the larger loss of the two that the claim is made of
SMALLER = 2.6


class KiviClaim(Claim):
    """Quality after compression at 2 and 4 bits; the ledger's peak of a batch that fills the same share of memory."""

    paper = "2 bits, nearly lossless (Llama-2-7B: GSM8K 13.50 → 12.74, CoQA 63.88 → 63.05); 2.6 × less peak memory"
    source = "arXiv:2402.02750, abstract and tables 3 and 5"
    rule = (
        "quality: next-token recovery at 2 bits ≥ 12.74/13.50 = 94.4 %; memory: peak ≥ 2.6 × smaller. "
        "Both: holds; one: partly"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Figures:
        figures: Figures = {"prefix": PREFIX, "scored": SCORED}
        for bits in (2, 4):
            run = context.quality([{"technique": "kivi", "bits": bits}], PREFIX, SCORED)
            recovery = recovery_of(run)
            figures[f"kl_{bits}"] = quality_of(run).kl.value
            figures[f"recovery_{bits}"] = recovery.value
            figures[f"low_{bits}"], figures[f"high_{bits}"] = recovery.low, recovery.high
            figures[f"cache_ratio_{bits}"] = _cache_bytes(context) / run.cache_bytes
        sequences = _sequences(context)
        full = context.peak([], PREFIX, sequences)
        small = context.peak([{"technique": "kivi", "bits": 2}], PREFIX, sequences)
        return figures | {"sequences": sequences, "full_peak": full, "peak": small, "memory_ratio": full / small}

    def judge(self, figures: Figures) -> Verdict:
        return combined(figures["recovery_2"] >= SMALLEST_RECOVERY, figures["memory_ratio"] >= SMALLER)

    def tell(self, figures: Figures) -> str:
        bits = "; ".join(
            f"{bits} bits: recovery {figures[f'recovery_{bits}']:.1%} "
            f"({figures[f'low_{bits}']:.1%} to {figures[f'high_{bits}']:.1%}), KL {figures[f'kl_{bits}']:.3f}, "
            f"cache {figures[f'cache_ratio_{bits}']:.1f} × smaller"
            for bits in (2, 4)
        )
        peaks = f"{figures['full_peak'] / 1e6:.0f} → {figures['peak'] / 1e6:.0f} MB"
        return f"{bits}; peak at 2 bits {peaks}, {figures['memory_ratio']:.2f} × smaller"

    def setting(self, figures: Figures) -> str:
        return (
            f"next token of prose, {figures['scored']:.0f} after {figures['prefix']:.0f} compressed; peak of "
            f"{figures['sequences']:.0f} sequences of {figures['prefix']:.0f} tokens, whose full cache and weights "
            "are 5.9 × the weights as in the paper (80 GB, 7B)"
        )


def _cache_bytes(context: Context) -> int:
    run = context.baseline(PREFIX, SCORED).run
    assert run is not None
    return run.cache_bytes


def _sequences(context: Context) -> int:
    """How many fill the paper's share of memory; at least two, at most what the engine decodes together."""
    each = context.engine.cache_footprint((), PREFIX, PREFIX).steady_bytes
    return max(2, min(32, round((MEMORY_OF_WEIGHTS - 1) * context.model.nbytes / each)))
