"""H2O: a fifth of the cache keeps the quality."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, Part, ahead, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered, unpredicted, word_problems

KEEP = 0.2
PAPER = 2048  # the context of its models
SINKS = 4
NEAR_FULL = 0.98  # Thrifty's reading of "near full quality"
RISE = -math.log(NEAR_FULL)  # the same of perplexity, in nats
HEADLINE = "loss of a token below the full cache's"


class H2oClaim(Claim):
    """Next tokens after compression; the sets of HELM and lm-eval are judged by likelihood for the most part, too."""

    paper = "20 % of the cache keeps near full quality (OPT, LLaMA, GPT-NeoX; HELM and lm-eval); local alone does not"
    source = "arXiv:2306.14048, abstract and figure 4; read in a secondary summary, not in the paper"
    rule = "with 20 % kept, perplexity rises by at most 2 %, which is our reading of near full quality"
    minutes = 1.5

    def measure(self, context: Context) -> Measurement:
        prefix = prompt_length(context, PAPER)
        score = partial(context.losses, prefix=prefix)
        table = {"technique": "h2o", "keep": KEEP}
        setting = (
            f"keep = {KEEP}, 256 tokens of prose after {prefix} compressed, a proxy for the paper's sets; its "
            "throughput against other servers is not measured"
        )
        full = score([])
        if weak := unpredicted(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours = score([table])
        tested = controlled(score, full, ours, keep=KEEP, length=prefix, whole=[table | {"keep": 1.0}])
        newest = {"technique": "streaming", "window": int(KEEP * prefix) - SINKS, "sinks": SINKS}
        alone = {"technique": "streaming", "window": int(KEEP * prefix), "sinks": 0, "renumber": False}
        return Measurement(
            headline=ahead(HEADLINE, ours, full, Bar(-RISE)),
            parts=(
                ahead("loss below the newest tokens' with sinks", ours, score([newest])),
                ahead("loss below the newest tokens' alone", ours, score([alone])),
                word_problems(context, [table], Bar(NEAR_FULL)),
                *_answers(context, table, newest, prefix),
            ),
            gates=(tested.gate, context.promise([table], KEEP, length=prefix)),
            controls=tested.controls,
            counts={"scored tokens": len(ours), "passages": ours.contexts},
            setting=setting,
        )


def _answers(context: Context, table: dict[str, Any], newest: dict[str, Any], length: int) -> list[Part]:
    """What prose does not show: questions about what stands in the prompt."""
    name = "answers of the full cache's, questions about the prompt"
    answers = Reading(context, length)
    full = answers([])
    if weak := unanswered(full):
        return [Part(name, bar=Bar(NEAR_FULL), missing=weak)]
    ours = answers([table])
    return [
        kept(name, ours, full, Bar(NEAR_FULL)),
        ahead(f"answers ahead of sinks and the newest, points ({counted(ours)['questions']})", ours, answers([newest])),
    ]
