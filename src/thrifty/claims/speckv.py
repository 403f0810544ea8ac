"""SpecKV: a draft's answer finds the slots that the model's own answer needs, and better ones than SnapKV."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, ahead, kept, times
from thrifty.claims.harness.prompting import Prompting, draft_of, share
from thrifty.claims.harness.reading import counted, prompt_length, unanswered
from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.forcing import Tables

PAPER = 8192  # about LongBench's mean, of which 256 are kept
PART, LEAST = 16, 64
KEPT = 0.96  # 46.06 of the dense model's 47.78
HEADLINE = "answers of the full cache's"


class SpeckvClaim(Claim):
    """Answers from a sixteenth of the slots, beside SnapKV's, with the question last, and first."""

    paper = (
        "Qwen2.5 32B, LongBench, 256 slots a head: 46.06, where SnapKV has 42.98 and the full cache 47.78 (96 % of it)"
    )
    source = "arXiv:2506.08373, LongBench table; read in a secondary summary and in the code, not in the paper"
    rule = (
        "with a sixteenth of the slots, at least 96 % of the full cache's right answers (question last), more than "
        "SnapKV's with as many"
    )
    minutes = 2.0
    models = ("smollm2-135m", "qwen2.5-coder-1.5b")

    def measure(self, context: Context) -> Measurement:
        length, draft = prompt_length(context, PAPER), draft_of(context)
        table: dict[str, Any] = {"technique": "speckv", "draft": draft.name, "capacity": share(length, PART, LEAST)}
        slots = table["capacity"]
        setting = (
            f"{slots} slots a head of {length} tokens, the last 32 among them; {draft.told}; a key in prose stands for "
            "LongBench; the prompt is a chat's whole turn, question last"
        )
        with Prompting(context, length, draft) as score:
            full = score([])
            if weak := unanswered(full):
                return Measurement.untestable(HEADLINE, weak, setting)

            def cached(cache: Tables, *, insist: bool = True) -> Scores:
                return score([], cache, insist=insist)

            ours, snapkv = score([table]), [{"technique": "snapkv", "capacity": slots}]
            tested = controlled(cached, full, ours, capacity=slots, length=length)
            made = context.rounds({"ours": lambda: score.seconds([table]), "full": lambda: score.seconds([])})
            first, rival = score([], place="first"), score([], snapkv)
            return Measurement(
                headline=kept(HEADLINE, ours, full, Bar(KEPT), "96 %"),
                parts=(
                    kept(f"{HEADLINE}, question first", score([table], place="first"), first, None),
                    kept(f"SnapKV's {HEADLINE}, question first", score([], snapkv, place="first"), first, None),
                    times("time to the first token, of the full cache's", made["ours"], made["full"], None),
                ),
                gates=(ahead("ahead of SnapKV's, points", ours, rival), tested.gate),
                controls=(*tested.controls, *score.whole(full, table)),
                counts=counted(ours),
                setting=setting,
            )
