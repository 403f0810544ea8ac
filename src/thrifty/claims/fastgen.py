"""FastGen: a sixth to nearly a half of the cache is pruned, and generation loses nothing that counts."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, Part, ahead, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered, word_problems
from thrifty.claims.harness.sharing import shared
from thrifty.claims.harness.statistics import Scores, mean_interval
from thrifty.evaluation.forcing import Tables, force

HIGH, MIDDLE, LOW = 0.98, 0.95, 0.91  # recovery T: the paper's 7B setting, its 65B setting, its lowest
PRUNED = {HIGH: 0.169, MIDDLE: 0.449}
WON = {HIGH: 2 * 0.474, MIDDLE: 2 * 0.442}  # a win rate of 50 % is a draw with the full cache
NOTHING = 0.01  # less than that is no budget that anything could be compared at
PAPER = 2048  # the context of its models
WHOLE = {"technique": "fastgen", "recovery": 1.0, "local": 1.0, "frequent": 1.0}  # every token is local
HEADLINE = "bytes pruned at T = 0.98"


class FastgenClaim(Claim):
    """Bytes and answers of chats, whose control tokens are the special ones, at the paper's own T for a small model."""

    paper = "7B, T = 0.98: 16.9 % of the cache pruned, win rate 47.4 %; 65B, T = 0.95: 44.9 %, 44.2 % (AlpacaEval)"
    source = "arXiv:2310.01801, table of cache budgets and win rates (section 5)"
    rule = (
        "at T = 0.98 at least 16.9 % of the bytes pruned, and at least 94.8 % of the full cache's right answers (a win "
        "rate of 47.4 % where 50 % is a draw)"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        score = Reading(context, length)
        tokenizer = context.model.require_tokenizer()
        form = "as a chat" if tokenizer.has_chat_template else "without a chat template, so with few special tokens"
        setting = (
            f"r_l = r_f = 0.3, every query head of a KV head recovered; {length} tokens {form}, question last; "
            "answers are marked, not judged against one another as AlpacaEval's are; "
            f"{score.told}"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours = score([_table(HIGH)], insist=False)
        pruned = _pruned(context, length, (HIGH, MIDDLE, LOW))
        headline = Part(HEADLINE, mean_interval(pruned[HIGH]), Bar(PRUNED[HIGH]), "16.9 %")
        if pruned[HIGH].mean < NOTHING:
            return Measurement(headline, counts={"prompts weighed": len(pruned[HIGH])}, setting=setting)
        keep = 1 - pruned[HIGH].mean
        tested = controlled(score, full, ours, keep=keep, length=length, whole=[WHOLE])
        middle = score([_table(MIDDLE)], insist=False)
        loss = context.losses([_table(HIGH)], insist=False)
        return Measurement(
            headline=headline,
            parts=(
                Part("bytes pruned at T = 0.95", mean_interval(pruned[MIDDLE]), Bar(PRUNED[MIDDLE]), "44.9 % (65B)"),
                kept("answers of the full cache's at T = 0.95", middle, full, Bar(WON[MIDDLE]), "win rate 44.2 %"),
                Part("bytes pruned at T = 0.91", mean_interval(pruned[LOW])),
                ahead("loss of a token below the full cache's", loss, context.losses([]), None),
                word_problems(context, [_table(HIGH)], Bar(WON[HIGH]), insist=False),
            ),
            gates=(
                kept("answers of the full cache's at T = 0.98", ours, full, Bar(WON[HIGH]), "win rate 47.4 %"),
                tested.gate,
            ),
            controls=tested.controls,
            counts=counted(ours) | {"prompts weighed": len(pruned[HIGH])},
            setting=setting,
        )


def _table(recovery: float) -> dict[str, Any]:
    return {"technique": "fastgen", "recovery": recovery}


def _pruned(context: Context, length: int, levels: tuple[float, ...]) -> dict[float, Scores]:
    """Of each T, the share of the full cache's bytes that is pruned, one a prompt."""
    task = context.task_of("recall", length=length, mode="aware")
    items = task.items(context.model.require_tokenizer(), context.budget.answers, context.seed)
    prompts = [item.prompt for item in items]
    names = tuple(f"prompt {place}" for place in range(len(prompts)))
    context.say(f"bytes of {len(prompts)} prompts at {len(levels)} levels of recovery")
    whole = [_bytes(context, prompt, []) for prompt in prompts]
    made = {}
    for level in levels:
        held = [_bytes(context, prompt, [_table(level)]) for prompt in prompts]
        shares = [1 - own / full for own, full in zip(held, whole, strict=True)]
        made[level] = Scores(tuple(shares), names, bounded=False)
    return made


def _bytes(context: Context, prompt: tuple[int, ...], cache: Tables) -> int:
    """Of a prompt's cache, as its first decoded token reads it."""
    nbytes = 0
    for step in force(shared(context.engine), prompt, prompt[-2:], cache, inspect=(1,)):
        nbytes = step.evidence.nbytes if step.evidence else nbytes
    return nbytes
