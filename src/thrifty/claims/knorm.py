"""Knorm: the smaller half of the keys, or the smallest tenth, still recalls what the whole cache does."""

from __future__ import annotations

from thrifty.claims.harness import rivals
from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context

QUESTION, ASKED = 2000, 24
SHARES = {"half": 0.5, "tenth": 0.1}


class KnormClaim(Claim):
    """Recall of one key with half and with a tenth of the cache, the newest tokens alone beside them."""

    paper = (
        "the KV cache 50 % smaller on language modelling and needle in a haystack, 90 % on passkey retrieval, without "
        "losing accuracy (Llama-2-7B)"
    )
    source = "arXiv:2406.11430, abstract"
    rule = "one key recalled as often as by the full cache, with half kept, and with a tenth. Both: holds; one: partly"
    minutes = 0.5
    model = "recall-2m"

    def measure(self, context: Context) -> Figures:
        tables = {name: [{"technique": "knorm", "keep": share}] for name, share in SHARES.items()}
        newest = {
            f"newest_{name}": [{"technique": "streaming", "window": round(share * QUESTION)}]
            for name, share in SHARES.items()
        }
        return rivals.recalls(context, {"full": [], **tables, **newest}, QUESTION, ASKED)

    def judge(self, figures: Figures) -> Verdict:
        full = figures["full_recall"]
        return combined(*(full > 0 and figures[f"{name}_recall"] >= full for name in SHARES))

    def tell(self, figures: Figures) -> str:
        recalls = ", ".join(
            f"with {share:.0%} kept in {figures[f'{name}_recall']:.0%} (sinks and the newest alone "
            f"{figures[f'newest_{name}_recall']:.0%})"
            for name, share in SHARES.items()
        )
        return f"one key recalled in {figures['full_recall']:.0%} (full), {recalls}"

    def setting(self, figures: Figures) -> str:
        return (
            f"{figures['asked']:.0f} keys in {figures['question']:.0f} tokens, question last, every layer compressed; "
            "language modelling is not measured with this model"
        )
