"""SnapKV: long prompts decode 3.6 times as fast from a cache 8.2 times as small, and keys are still recalled."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.needles import needles, recalled
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.measuring.noise import LIMIT, listening

SHARE = 16  # the paper keeps 1024 of 16384 tokens
LONGEST = 16384
STEPS, ROUNDS = 48, 2
FASTER, SMALLER, RECALLED = 3.6, 8.2, 0.95
ASKED, QUESTION = 12, 480  # small models recall a key reliably up to about 0.5k tokens
NEEDLE = {"technique": "snapkv", "window": 16, "kernel": 5}  # the paper's setting for needles
CUTS = (2, 4)  # shares of the prompt that are kept: the smaller one decides


class SnapkvClaim(Claim):
    """Decode speed and bytes at the longest prompt the model holds, and recall where the model can recall at all."""

    paper = (
        "16K tokens, batch 2, 1024 kept: decodes 3.6 × faster, 8.2 × the memory efficiency; a needle in 380K is found"
    )
    source = "arXiv:2404.14469, abstract and section 5"
    rule = (
        "speed: ≥ 3.6 ×; memory: cache ≥ 8.2 × smaller; recall: ≥ 95 % of the full cache's with a quarter kept. "
        "All: holds; some: partly"
    )
    minutes = 3.0

    def measure(self, context: Context) -> Figures:
        length = min(LONGEST, context.length - STEPS - 2)
        return _speed(context, length) | _recall(context)

    def judge(self, figures: Figures) -> Verdict:
        base = figures["recall"]
        kept = base > 0 and figures[f"recall_{CUTS[-1]}"] >= RECALLED * base
        return combined(figures["faster"] >= FASTER, figures["smaller"] >= SMALLER, kept)

    def tell(self, figures: Figures) -> str:
        recall = ", ".join(f"{figures[f'recall_{cut}']:.0%} with 1/{cut} kept" for cut in CUTS)
        return (
            f"decodes {figures['faster']:.2f} × as fast ({figures['full_rate']:.0f} → {figures['rate']:.0f} tok/s), "
            f"cache {figures['smaller']:.1f} × smaller; one key recalled in {figures['recall']:.0%}, {recall}"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"{figures['length']:.0f} tokens (the context's end; the paper: 16384) kept to 1/{SHARE}, batch 1; recall "
            f"of {figures['asked']:.0f} keys in {figures['question']:.0f} tokens, question last"
            + (
                f"; TIMING VOID: others took {figures['others']:.0%} of the machine"
                if figures["others"] > LIMIT
                else ""
            )
        )


def _speed(context: Context, length: int) -> Figures:
    """Best decode rates of alternating rounds, cache bytes, and the share of the machine that others took."""
    rates: dict[str, list[float]] = {"full_rate": [], "rate": []}
    held: dict[str, int] = {}
    tables: dict[str, Tables] = {"full_rate": [], "rate": [{"technique": "snapkv", "capacity": length // SHARE}]}
    others = 0.0
    for _ in range(ROUNDS):
        for name, cache in tables.items():
            with listening() as noise:
                measured = context.speed(cache, length, STEPS)
            rates[name].append(measured.decode_rate)
            held[name] = measured.cache_bytes
            others = max(others, noise.others)
    best = {name: max(values) for name, values in rates.items()}
    faster, smaller = best["rate"] / best["full_rate"], held["full_rate"] / held["rate"]
    return {"length": length, **best, "faster": faster, "smaller": smaller, "others": others}


def _recall(context: Context) -> Figures:
    """Shares of right answers: uncompressed, and by what is kept."""
    context.say(f"recall of {ASKED} keys")
    length = min(QUESTION, context.length - 64)
    questions = needles(context.model.require_tokenizer(), length, ASKED)
    figures: Figures = {"asked": ASKED, "question": length, "recall": _share(recalled(context.engine, questions, []))}
    for cut in CUTS:
        table = NEEDLE | {"capacity": length // cut}
        figures[f"recall_{cut}"] = _share(recalled(context.engine, questions, [table]))
    return figures


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
