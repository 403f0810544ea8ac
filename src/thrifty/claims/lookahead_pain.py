"""Lookahead (PAIN): trees from tries decode word problems 2.69 times as fast, and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.drafting import PER_ROUND, Sides, answer, per_prompt, quotes, shuffled
from thrifty.claims.harness.parts import Bar, Part, times
from thrifty.claims.harness.statistics import advantage
from thrifty.evaluation.tasks import TaskError

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

OURS = {"technique": "lookahead-pain"}
PAPERS = OURS | {"decoding_length": 64, "exact": False}
FASTER = 2.69
ANSWER = 96  # tokens of an answer
WARMED = 16  # answers to other problems that the trie has seen
LENGTH, BEGUN = 256, 24  # tokens of a quoted text, and of its repetition
PROBLEMS = "decodes word problems faster"


class LookaheadPainClaim(Claim):
    """Word problems with a trie of answers to others, as the paper has them, and prompts that are quoted."""

    paper = (
        "Llama2-7B-chat, A100: GSM8K 2.69 × as fast, with a trie of answers to the training set; AntGLM-10B with "
        "retrieval 5.36 ×; answers do not change"
    )
    source = "arXiv:2312.12728, tables; README and code of the authors' repository, which were read"
    rule = "word problems (GSM-symbolic), the trie warmed with answers to others, decode at least 2.69 × as fast"
    models = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
    minutes = 1.0

    def measure(self, context: Context) -> Measurement:
        rounds = max(2, context.budget.rounds)
        engine = context.fresh(context.model)
        try:
            return self._measured(context, engine, rounds)
        finally:
            engine.close()

    def _measured(self, context: Context, engine: Engine, rounds: int) -> Measurement:
        prompts = quotes(context.model.require_tokenizer(), rounds * PER_ROUND, LENGTH, BEGUN, context.seed)
        context.say("prompts that quote")
        told = Sides(engine, prompts, ANSWER, ours=[OURS], plain=[], paper=[PAPERS])
        rates = context.rounds(told.rates)
        other = [answer(engine, prompt, [OURS], ANSWER, "other") for prompt in shuffled(prompts, BEGUN, context.seed)]
        headline, gates, problems = self._problems(context, engine, rounds)
        return Measurement(
            headline=headline,
            parts=(
                times("decodes answers that quote their prompt faster", rates["ours"], rates["plain"], None, "5.36 ×"),
                times("the same with 64 rows, as published", rates["paper"], rates["plain"], None, "5.36 ×"),
            ),
            gates=(told.same("ours", "plain"), *gates),
            controls=(
                Control(
                    "tokens a step with the quoted text in random order",
                    "lose",
                    advantage(per_prompt([own.tokens_a_step for own in other]), told.tokens_a_step("ours")),
                ),
            ),
            counts={"quoting prompts": len(prompts), "problems": problems},
            setting=f"batch 1, greedy, answers of {ANSWER} tokens, alternating; {LENGTH} tokens quoted; 16 rows; "
            f"{WARMED} answers to other problems in the trie, the paper's training set has thousands",
            told=f"{told.tokens_a_step('ours').mean:.2f} tokens a step where prompts are quoted",
        )

    def _problems(self, context: Context, engine: Engine, rounds: int) -> tuple[Part, tuple[Part, ...], int]:
        """The headline, its gate, and how many problems were asked."""
        try:
            items = context.task_of("gsm-symbolic", shots=0).items(
                context.model.require_tokenizer(), WARMED + rounds * PER_ROUND, context.seed
            )
        except TaskError as error:
            return Part(PROBLEMS, bar=Bar(FASTER), missing=str(error).split(". ")[0]), (), 0
        context.say("word problems")
        prompts: list[Sequence[int]] = [[*item.prompt, *item.turns[0].tokens] for item in items]
        for prompt in prompts[:WARMED]:
            answer(engine, prompt, [OURS], ANSWER, "warmed")
        asked = Sides(engine, prompts[WARMED:], ANSWER, warmed=[OURS], plain=[])
        rates = context.rounds(asked.rates)
        headline = times(PROBLEMS, rates["warmed"], rates["plain"], Bar(FASTER), "2.69 ×")
        return headline, (asked.same("warmed", "plain"),), len(prompts)
