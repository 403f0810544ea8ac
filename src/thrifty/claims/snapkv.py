"""SnapKV: long prompts decode 3.6 times as fast, 8.2 times as long ones fit, and answers stay comparable."""

from __future__ import annotations

from typing import Any

from thrifty.bisection import largest
from thrifty.cache.policies.snapkv import Snapkv
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, Part, exactly, kept, times
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered

PAPER, CAPACITY = 16384, 1024
SHARE = PAPER // CAPACITY
LONG, STEPS = 8142, 48  # of timings where the budget has no time for the paper's length
FASTER, LONGER, COMPARABLE = 3.6, 8.2, 0.95  # the last is Thrifty's reading of "comparable performance"
MOST = 1 << 20  # tokens of a prompt, at most
ANSWERS = "answers of the full cache's"


class SnapkvClaim(Claim):
    """Decode speed after long prompts of which a sixteenth is kept, answers with a sixteenth, and the longest prompt
    that fits the bytes of the full cache's 16384 tokens.
    """

    paper = "16K tokens, batch 2, 1024 kept: decodes 3.6 × faster, 8.2 × longer inputs; a needle in 380K is found"
    source = "arXiv:2404.14469, abstract and section 5; read in a secondary summary, not in the paper"
    rule = "with a sixteenth kept, decoding at least 3.6 × as fast, and at least 95 % of the full cache's right answers"
    minutes = 3.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        timed = min(max(length, LONG), PAPER, context.length - STEPS - 2)
        score = Reading(context, length)
        setting = (
            f"timed after {timed} tokens kept to 1/{SHARE}, batch 1 (the paper: 2); answers after {length} kept to "
            f"1/{SHARE}, question last; {score.told}"
        )
        fast, slow = context.speed([_table(timed)], length=timed, steps=STEPS)
        headline = times("decodes faster with 1/16 kept", fast, slow, Bar(FASTER), "3.6 ×")
        longest = _longest(context)
        full = score([])
        if weak := unanswered(full):
            missing = Part(ANSWERS, bar=Bar(COMPARABLE), missing=weak)
            return Measurement(missing, (headline, longest), setting=setting)
        ours = score([_table(length)])
        whole = [{"technique": "snapkv", "keep": 1.0}]
        tested = controlled(score, full, ours, capacity=length // SHARE, length=length, whole=whole)
        return Measurement(
            headline=headline,
            parts=(longest, *_needles(context, length)),
            gates=(
                kept(ANSWERS, ours, full, Bar(COMPARABLE)),
                tested.gate,
                context.promise([_table(length)], 1 / SHARE, length=length),
            ),
            controls=tested.controls,
            counts=counted(ours),
            setting=setting,
        )


def _table(length: int, **options: Any) -> dict[str, Any]:
    return {"technique": "snapkv", "capacity": length // SHARE, **options}


def _needles(context: Context, length: int) -> tuple[Part, ...]:
    """One key, with the paper's window and kernel for needles."""
    full = context.recall([], length=length)
    ours = context.recall([_table(length, window=16, kernel=5)], length=length)
    return (kept("needles found of the full cache's", ours, full, None, "100 % of 380K tokens with 1024 kept"),)


def _longest(context: Context) -> Part:
    """By the ledger's own bounds, prefill included: what fits the cache bytes of the paper's prompt in full."""
    footprint = context.engine.cache_footprint
    room = footprint((), PAPER, PAPER + 1).peak_bytes
    policy = (Snapkv(capacity=CAPACITY),)
    longest = largest(PAPER, MOST, lambda tokens: footprint(policy, tokens, tokens + 1).peak_bytes <= room)
    return exactly(f"longer prompt in the bytes of {PAPER} tokens", longest / PAPER, Bar(LONGER), "times", "8.2 ×")
