"""Quest: reading a sixteenth of a long cache decodes 2.23 times as fast, and loses little."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, Part, ahead, kept, times
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered

SHARE = 16  # the paper reads 2048 of 32768 tokens
PAPER = 32768
PAGE, FINE = 64, 16  # tokens of a page as the cache lies in memory, and the paper's
LONG, STEPS = 6144, 48  # of timings where the budget has no time for the paper's length
FASTER, NEAR_FULL = 2.23, 0.98  # the second is Thrifty's reading of "negligible loss"
ANSWERS = "answers of the full cache's"


class QuestClaim(Claim):
    """Decode speed, and answers, with a sixteenth of a long prompt read; the paper's pages beside ours."""

    paper = (
        "32K tokens, 2048 of them read, 4-bit weights: decodes 2.23 × as fast (attention alone up to 7.03 ×) with "
        "negligible loss of accuracy (LongChat-7B, Yarn-Llama-2-7B)"
    )
    source = "arXiv:2406.10774, abstract and end-to-end evaluation; its repository's README"
    rule = (
        "with 1/16 of the prompt read, decodes at least 2.23 × as fast with at least 98 % of the full cache's answers"
    )
    minutes = 3.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        timed = min(max(length, LONG), context.length - STEPS - 2)
        score = Reading(context, length)
        setting = (
            f"timed after {timed} tokens, batch 1; answers after {length}, question last; pages of {PAGE}, first two "
            f"layers dense; query heads that share keys choose each for itself and read what any of them chose; "
            f"{score.told}"
        )
        fast, slow = context.speed([_table(timed)], length=timed, steps=STEPS)
        headline = times("decodes faster with 1/16 read", fast, slow, Bar(FASTER), "2.23 ×")
        full = score([])
        if weak := unanswered(full):
            return Measurement(Part(ANSWERS, bar=Bar(NEAR_FULL), missing=weak), (headline,), setting=setting)
        ours, fine = score([_table(length)]), score([_table(length, FINE)])
        read = _budget(length)
        whole = [{"technique": "quest", "budget": -(-(length + PAGE) // PAGE) * PAGE}]
        tested = controlled(score, full, ours, capacity=read, length=length, whole=whole)
        return Measurement(
            headline=headline,
            parts=(
                kept(f"{ANSWERS} with the paper's pages of {FINE}", fine, full, None),
                ahead(
                    "loss of a token below the full cache's", context.losses([_table(length)]), context.losses([]), None
                ),
            ),
            gates=(kept(ANSWERS, ours, full, Bar(NEAR_FULL)), tested.gate),
            controls=tested.controls,
            counts=counted(ours),
            setting=f"{setting}; {read} tokens read by a query head",
        )


def _budget(length: int) -> int:
    """A sixteenth in whole pages, three at least."""
    return max(3, round(length / SHARE / PAGE)) * PAGE


def _table(length: int, page: int = PAGE) -> dict[str, Any]:
    return {"technique": "quest", "budget": _budget(length), "page": page}
