"""Speculative decoding: a small model's drafts make a large one decode 2 to 3 times as fast, and change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.drafting import PER_ROUND, Sides, answer, drawn_alike, excess, per_prompt
from thrifty.claims.harness.parts import Bar, Part, times
from thrifty.claims.harness.statistics import advantage
from thrifty.evaluation.text import held_out

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

DRAFTS = {"qwen2.5-coder-1.5b": "qwen2.5-coder-0.5b"}
"""Small models of the same tokens. Others draft with two thirds of their own layers, which nobody trained for it."""
SMALLER = "a smaller model of the same tokens: this one has its own layers alone"
FASTER = 2.0
ANSWER, SAMPLED = 64, 48  # tokens of an answer
LENGTH = 256  # tokens of a prompt


class SpeculativeClaim(Claim):
    """Decode speed with drafts of an adaptive length, greedy; samples against the model's own distribution."""

    paper = (
        "T5-XXL with T5-small: 2 to 3 × as fast (Leviathan); Chinchilla 70B: 2 to 2.5 × (Chen); the output unchanged"
    )
    source = "arXiv:2211.17192 abstract and table 2; arXiv:2302.01318 abstract"
    rule = "decodes at least 2 × as fast with the drafts of a smaller model, greedy, batch 1"
    models = ("qwen2.5-coder-1.5b", "smollm2-135m")
    minutes = 5.0

    def measure(self, context: Context) -> Measurement:
        layers = len(context.model.config.layers)
        draft = DRAFTS.get(context.name, f"layers:0-{max(0, 2 * layers // 3 - 1)}")
        first = "layers:0"
        engine = context.fresh(context.model, drafts=(draft, first))
        try:
            return self._measured(context, engine, draft, first)
        finally:
            engine.close()

    def _measured(self, context: Context, engine: Engine, draft: str, weakest: str) -> Measurement:
        count, drawn_of = max(2, context.budget.rounds) * PER_ROUND, max(4, context.budget.items // 2)
        text = held_out(context.model.require_tokenizer(), (count + drawn_of) * LENGTH + 1, context.seed)[1:]
        prompts, others = (
            [text[at * LENGTH : (at + 1) * LENGTH] for at in range(first, last)]
            for first, last in ((0, count), (count, count + drawn_of))
        )
        context.say(f"drafts by {draft}")
        sides = Sides(engine, prompts, ANSWER, ours=[_table(draft)], plain=[], four=[_table(draft, length=4)])
        rates = context.rounds(sides.rates)
        weak = [answer(engine, prompt, [_table(weakest, length=4)], ANSWER) for prompt in prompts]
        context.say("sampled answers")
        drawn = excess(engine, others, [_table(draft, length=4)], SAMPLED)
        faster = times(f"decodes faster, {draft}", rates["ours"], rates["plain"], Bar(FASTER), "2 to 3 ×")
        own = context.name not in DRAFTS
        return Measurement(
            headline=Part("decodes faster", bar=Bar(FASTER), missing=SMALLER) if own else faster,
            parts=(
                *((replace(faster, bar=None),) if own else ()),
                times("the same with drafts of 4", rates["four"], rates["plain"], None, "2 to 3 ×"),
            ),
            gates=(sides.same("four", "plain"), sides.same("ours", "plain"), *drawn_alike(drawn)),
            controls=(
                Control(
                    "tokens a step with drafts of the first layer alone",
                    "lose",
                    advantage(per_prompt([own.tokens_a_step for own in weak]), sides.tokens_a_step("four")),
                ),
            ),
            counts={"prompts": count, "sampled tokens": len(drawn)},
            setting=f"drafts by {draft}; prose, {ANSWER} tokens after {LENGTH}, batch 1, alternating",
            told=f"{sides.tokens_a_step('four').mean:.2f} tokens a step with drafts of 4, "
            f"{sides.tokens_a_step('ours').mean:.2f} adaptive; {_costs(engine, draft)}",
        )


def _table(draft: str, **options: Any) -> dict[str, Any]:
    return {"technique": "speculative", "draft": draft, **options}


def _costs(engine: Engine, draft: str) -> str:
    """What steps were measured to take."""
    drafts = engine.memory.drafts
    step = drafts.costs.seconds(1)
    own = drafts.require((draft,), lambda nbytes: None)[draft].costs.seconds(1) / step
    return f"a draft step takes {own:.2f} of the target's, 5 rows {drafts.costs.seconds(5) / step:.2f}"
