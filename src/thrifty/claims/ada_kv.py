"""Ada-KV: at the same budget, sharing slots out among heads is better than SnapKV's equal shares."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, ahead, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered

KEEP = 0.2  # the paper's smallest query-agnostic budget
TABLE = {"technique": "ada-kv", "keep": KEEP}
RIVAL = {"technique": "snapkv", "keep": KEEP}
PAPER = 8192  # LongBench's texts have about so many tokens
HEADLINE = "answers ahead of SnapKV's, points"


class AdaKvClaim(Claim):
    """Questions that come after compression, as in the paper's question-agnostic table."""

    paper = "LongBench without the query, Llama-3.1-8B, 20 % of the cache: 42.87, SnapKV 41.29 (full 49.20)"
    source = "arXiv:2407.11550, question-agnostic results; read in a secondary summary, not in the paper"
    rule = "with 20 % kept, more right answers than SnapKV with as many slots, to questions unknown when it compresses"
    minutes = 1.2

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        score = Reading(context, length, "agnostic")
        setting = f"keep = {KEEP}, {length} tokens, two questions a text, all asked after compression; {score.told}"
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, rival = score([TABLE]), score([RIVAL])
        tested = controlled(score, full, ours, keep=KEEP, length=length, whole=[TABLE | {"keep": 1.0}])
        loss = {name: context.losses([table]) for name, table in (("ours", TABLE), ("rival", RIVAL))}
        return Measurement(
            headline=ahead(HEADLINE, ours, rival, paper="+1.58 points of 49.20"),
            parts=(
                kept("answers of the full cache's", ours, full, Bar(42.87 / 49.20), "87.1 %, SnapKV 83.9 %"),
                kept("SnapKV's of the full cache's", rival, full, None, "83.9 %"),
                ahead("next tokens' loss below SnapKV's", loss["ours"], loss["rival"]),
            ),
            gates=(tested.gate, context.promise([TABLE], KEEP, length=length)),
            controls=tested.controls,
            counts=counted(ours) | {"scored tokens": len(loss["ours"])},
            setting=setting,
        )
