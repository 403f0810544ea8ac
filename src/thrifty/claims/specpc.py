"""SpecPC: the tokens that a draft model attends to answer as the whole prompt does."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.parts import Bar, ahead, kept, times
from thrifty.claims.harness.prompting import Prompting, draft_of, share
from thrifty.claims.harness.reading import counted, prompt_length, unanswered

PAPER = 8192  # about LongBench's mean, of which 1024 are kept
PART, LEAST = 8, 128
NEAR_FULL = 0.95  # Thrifty's reading of "preserves accuracy"
HEADLINE = "answers of the whole prompt's"


class SpecpcClaim(Claim):
    """Answers from an eighth of the prompt, chosen by a draft model's attention, with the question last, and first."""

    paper = (
        "Qwen2.5 14B with a 0.5B draft and LLaMA 3.1 8B with 3.2 1B: LongBench and RULER with 1024 tokens kept, ahead "
        "of other prompt compression at equal budgets"
    )
    source = "arXiv:2506.08373; its repository's settings. Read in a summary and in the code, not in the paper"
    rule = (
        "with an eighth of the prompt read, at least 95 % of the whole prompt's right answers (question last), more "
        "than with random tokens"
    )
    minutes = 2.0
    models = ("smollm2-135m", "qwen2.5-coder-1.5b")

    def measure(self, context: Context) -> Measurement:
        length, draft = prompt_length(context, PAPER), draft_of(context)
        table = _table(context, length)
        setting = (
            f"{table['capacity']} of {length} tokens read, the last 64 among them; {draft.told}; a key in prose stands "
            "for LongBench and RULER; the prompt is a chat's whole turn, question last"
        )
        with Prompting(context, length, draft) as score:
            full = score([])
            if weak := unanswered(full):
                return Measurement.untestable(HEADLINE, weak, setting)
            ours = score([table])
            tested = score.controlled(full, ours, table)
            rival = score([{"technique": "gemfilter", "capacity": table["capacity"]}])
            made = context.rounds({"ours": lambda: score.seconds([table]), "whole": lambda: score.seconds([])})
            first = score([], place="first")
            return Measurement(
                headline=kept(HEADLINE, ours, full, Bar(NEAR_FULL)),
                parts=(
                    kept(f"{HEADLINE}, question first", score([table], place="first"), first, None),
                    ahead("ahead of GemFilter's with as many tokens, points", ours, rival, None),
                    times("time to the first token, of the whole prompt's", made["ours"], made["whole"], None),
                ),
                gates=(tested.gate,),
                controls=tested.controls,
                counts=counted(ours),
                setting=setting,
            )


def _table(context: Context, length: int) -> dict[str, Any]:
    draft = draft_of(context)
    return {
        "technique": "specpc",
        "draft": draft.name,
        "capacity": share(length, PART, LEAST),
        "first_layer": min(8, draft.layers // 3),
    }
