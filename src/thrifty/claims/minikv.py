"""MiniKV: the cache 86 % smaller, and 98.5 % of the quality stays."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control, controlled
from thrifty.claims.harness.parts import Bar, ahead, exactly, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered, word_problems
from thrifty.claims.harness.statistics import advantage
from thrifty.evaluation.forcing import Tables, force
from thrifty.evaluation.text import held_out

RECOVERED = 34.65 / 35.19  # LongBench, pyramid over the full cache
UNIFORM = 33.71 / 35.19
SMALLER = 0.86
PROMPT, ANSWER = 4096, 512  # the paper's setting for memory
KEPT = 0.5  # heavy and recent, a quarter each
HEADLINE = "answers of the full cache's"
TABLE = {"technique": "minikv"}


class MinikvClaim(Claim):
    """Answers at the paper's options, and bytes at its lengths; the uniform allocation beside the pyramid."""

    paper = (
        "86 % less KV cache, over 98.5 % of the accuracy (Llama-2-7B-chat, LongBench: 34.65 of 35.19; uniform 33.71)"
    )
    source = "arXiv:2411.18077v2, abstract and its tables of LongBench and memory"
    rule = "at least 34.65/35.19 = 98.5 % of the full cache's right answers, with a cache at least 86 % smaller"
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PROMPT)
        score = Reading(context, length)
        setting = (
            f"the paper's options; {length} tokens, question last; bytes after {PROMPT} + {ANSWER} tokens, pages and "
            f"positions counted; {score.told}"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours = score([TABLE])
        tested = controlled(score, full, ours, keep=KEPT, length=length)
        whole = [TABLE | {"heavy": 1.0, "recent": 1.0, "layers": "uniform", "bits": 8, "subchannel": 32}]
        hold = Control("all slots in 8 bits", "hold", advantage(score(whole), full))
        return Measurement(
            headline=kept(HEADLINE, ours, full, Bar(RECOVERED), "98.5 %"),
            parts=(
                kept("the same, uniform over layers", score([_uniform()]), full, Bar(UNIFORM), "95.8 %"),
                ahead("loss of a token below the full cache's", context.losses([TABLE]), context.losses([]), None),
                word_problems(context, [TABLE], None, "needs about 90 % of the budget"),
            ),
            gates=(exactly("cache smaller by", _smaller(context), Bar(SMALLER), paper="86 %"), tested.gate),
            controls=(*tested.controls, hold),
            counts=counted(ours),
            setting=setting,
        )


def _uniform() -> dict[str, Any]:
    return TABLE | {"layers": "uniform"}


def _smaller(context: Context) -> float:
    """The share of the full cache's bytes that is saved when the answer ends."""
    return 1 - _held(context, [TABLE]) / _held(context, [])


def _held(context: Context, cache: Tables) -> int:
    """Bytes of a sequence's cache after the paper's prompt and answer."""
    context.say(f"bytes after {PROMPT} + {ANSWER} tokens")
    tokens = held_out(context.model.require_tokenizer(), PROMPT + ANSWER + 1)
    nbytes = 0
    for step in force(context.engine, tokens[:PROMPT], tokens[PROMPT:], cache, inspect=(ANSWER,)):
        nbytes = step.evidence.nbytes if step.evidence else nbytes
    return nbytes
