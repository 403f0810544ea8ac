"""KVMerger: merged neighbours keep more than evicted ones, at half and at a third of the cache."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context, quality_of, recovery_of

PREFIX, SCORED = 2048, 256
SHARES = (50, 35)  # per cent of the prompt that is kept, the paper's two settings
MASSES = ("bias", "published")
WHOLE = {"first": 2, "last": 1}  # layers that are left as they are


class KvmergerClaim(Claim):
    """Divergence and next-token recovery at both budgets, with both corrections of the mass, beside H2O's."""

    paper = "9 LongBench sets: 50 % of the cache 35.02 (H2O 33.49; Llama-2-7B-chat), 35 % 35.04 (H2O 13.48; Mistral-7B)"
    source = "arXiv:2407.08454, tables 1 and 2"
    rule = (
        "at 50 %, and at 35 %: less divergence than H2O and a next-token recovery no lower, with the default "
        "correction. Both budgets: holds; one: partly"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Figures:
        figures: Figures = {"prefix": PREFIX, "scored": SCORED}
        for share in SHARES:
            for name, table in _tables(share).items():
                run = context.quality([table], PREFIX, SCORED)
                figures[f"{name}_{share}_kl"] = quality_of(run).kl.value
                figures[f"{name}_{share}_recovery"] = recovery_of(run).value
        return figures

    def judge(self, figures: Figures) -> Verdict:
        return combined(*(_ahead(figures, share) for share in SHARES))

    def tell(self, figures: Figures) -> str:
        return "; ".join(_told(figures, share) for share in SHARES)

    def setting(self, figures: Figures) -> str:
        return (
            f"next token of prose, {figures['scored']:.0f} after {figures['prefix']:.0f} compressed; kept shares are "
            "means over the layers, met exactly; H2O has as many slots on average over the answer, which it goes on "
            "evicting"
        )


def _tables(share: int) -> dict[str, dict[str, Any]]:
    keep = share / 100
    tables: dict[str, dict[str, Any]] = {
        mass: {"technique": "kvmerger", "keep": keep, "mass": mass} | WHOLE for mass in MASSES
    }
    return tables | {"h2o": {"technique": "h2o", "capacity": int(keep * PREFIX) + SCORED // 2}}


def _ahead(figures: Figures, share: int) -> bool:
    kl, recovery = ((figures[f"bias_{share}_{what}"], figures[f"h2o_{share}_{what}"]) for what in ("kl", "recovery"))
    return kl[0] < kl[1] and recovery[0] >= recovery[1]


def _told(figures: Figures, share: int) -> str:
    names = {"bias": "KVMerger", "published": "with the published values", "h2o": "H2O"}
    parts = [
        f"{shown} KL {figures[f'{name}_{share}_kl']:.3f}, recovery {figures[f'{name}_{share}_recovery']:.1%}"
        for name, shown in names.items()
    ]
    return f"at {share} %: " + ", ".join(parts)
