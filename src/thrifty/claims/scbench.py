"""SCBench: what is evicted for one question is missed by the next; what is stored in fewer bits is not."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context
from thrifty.evaluation import tasks
from thrifty.evaluation.forcing import Tables

LENGTH, ITEMS, TURNS = 1024, 16, 3
SHARE = 4  # of the context that eviction keeps
HELD, FALLEN = 0.9, 0.5  # of the full cache's later turns


class ScbenchClaim(Claim):
    """Questions over one context that was compressed with the first of them: that one, and those that follow."""

    paper = (
        "12 tasks: methods that drop part of the cache answer the first question but do poorly in multi-turn; dense "
        "caches, quantised ones included, hold"
    )
    source = "arXiv:2412.10319, abstract and sections 4 and 5"
    rule = (
        "quantisation: at least 90 % of the full cache's later answers; eviction: at least 90 % of its first answers, "
        "but at most half of the later ones. All three: holds; some: partly"
    )
    minutes = 2.0
    model = "recall-2m"

    def measure(self, context: Context) -> Figures:
        kept = LENGTH // SHARE
        evicting: Tables = [{"technique": "snapkv", "capacity": kept}]
        quantised: Tables = [{"technique": "kivi", "bits": 2}]
        figures: Figures = {"length": LENGTH, "items": ITEMS, "turns": TURNS, "kept": kept}
        for name, cache in (("full", []), ("evicting", evicting), ("quantised", quantised)):
            figures |= _turns(context, name, cache)
        return figures

    def judge(self, figures: Figures) -> Verdict:
        first, later = figures["full_first"], figures["full_later"]
        if not first or not later:
            return Verdict.FAILS
        return combined(
            figures["quantised_later"] >= HELD * later,
            figures["evicting_first"] >= HELD * first,
            figures["evicting_later"] <= FALLEN * later,
        )

    def tell(self, figures: Figures) -> str:
        parts = [
            f"{words} {figures[f'{name}_first']:.0%} of first and {figures[f'{name}_later']:.0%} of later questions"
            for name, words in (
                ("full", "the full cache answers"),
                ("evicting", f"snapkv with 1/{SHARE} kept"),
                ("quantised", "kivi in 2 bits"),
            )
        ]
        return ", ".join(parts)

    def setting(self, figures: Figures) -> str:
        return (
            f"{figures['items']:.0f} contexts of {figures['length']:.0f} tokens, {figures['turns']:.0f} questions "
            "each, the first compressed with the context, right answers fed back; recall only (the paper: 12 tasks)"
        )


def _turns(context: Context, name: str, cache: Tables) -> Figures:
    """Shares of right answers to the first question and to the later ones."""
    context.say(f"{TURNS} questions over {ITEMS} contexts, {name}")
    task = tasks.load("multi-turn", mode="aware", length=LENGTH, turns=TURNS)
    items = task.items(context.model.require_tokenizer(), ITEMS, 0)
    scores = [task.run(context.engine, item, cache).details["turns"] for item in items]
    later = [score for turns in scores for score in turns[1:]]
    return {f"{name}_first": sum(turns[0] for turns in scores) / len(scores), f"{name}_later": sum(later) / len(later)}
