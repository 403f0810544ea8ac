"""Pairs of free answers: a judge says whether a recipe's answers are as good as the uncompressed model's."""

from __future__ import annotations

import math
import statistics
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from thrifty.evaluation.asking import likelihoods
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.length_control import length_controlled
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import SEPARATOR, Frame, Mode
from thrifty.evaluation.tasks._haystack import Haystack
from thrifty.evaluation.tasks.task import Answered, Effort, Item, Record, TaskTurn, Tokens

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

ASKS = (
    "Write a summary of the text above in three sentences.",
    "Explain to a child what the text above is about.",
    "Name the three most important points of the text above, each with a reason.",
    "Which problem does the text above describe, and what is done about it?",
    "Write a letter to a friend that tells what the text above says.",
    "What questions would you ask the people in the text above? Name three, and say why.",
    "Write a short note that argues against something in the text above.",
    "Who speaks or acts in the text above, and what do they want?",
    "Give the text above a title, and explain it in two sentences.",
    "What in the text above would surprise a reader of today? Explain your choice.",
    "Advise somebody who has to act on the text above: what should come first?",
    "Describe the mood of the text above, with two examples from it.",
)
JUDGED = (
    "{text}\n\nInstruction: {asked}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
    "Which answer follows the instruction better and is truer to the text, A or B?"
)
LEAD = "The better answer is"
VERDICTS = (" A", " B")


@dataclass(frozen=True, kw_only=True)
class AlpacaPairs(Answering):
    """Free answers about a text, judged in pairs in the manner of AlpacaEval (2404.04475): the same instruction is
    answered by the uncompressed model and by the recipe, and the judge's preference for the recipe's is the score (the
    probabilities of its verdict, mean over both orders; 0.5: as good, and 0.5 for the uncompressed model itself).
    `length_controlled` beside it is the preference at equal lengths (`evaluation.length_control`). The instructions and
    texts are this project's, not AlpacaEval's.

    judge: a model by its name; without one the run's uncompressed model judges. mode: see `Mode`.
    """

    name: ClassVar[str] = "alpaca-pairs"
    metric: ClassVar[str] = "preference for the answer beside the uncompressed model's"
    pairs: ClassVar[bool] = True
    limit: ClassVar[int] = 160
    stop: ClassVar[tuple[str, ...]] = ()

    judge: str = ""
    mode: Mode = "agnostic"

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        haystack, frame = Haystack(tokenizer, self.half), Frame.of(tokenizer)
        return [self._item(haystack, frame, seed, number) for number in range(count)]

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """0.5: an answer is as good as itself."""
        return 0.5

    def compare(self, baseline: Engine, engine: Engine, item: Item, cache: Tables | None) -> tuple[Record, Record]:
        theirs, own = super().compare(baseline, engine, item, cache)
        preference = self.preference(baseline, item, own.output, theirs.output)
        lengths = {"characters": len(own.output), "characters_baseline": len(theirs.output)}
        return theirs, replace(own, score=preference, details={**own.details, **lengths})

    def scrambled(self, engine: Engine, own: Answered, others: Sequence[Answered]) -> float:
        """The preference for answers to other items over one's own."""
        return statistics.fmean(
            self.preference(engine, own.item, other.record.output, own.record.output) for other in others
        )

    def over(self, records: Sequence[Record]) -> dict[str, float]:
        """The preference at equal lengths, of records that have another side's length."""
        pairs = [record for record in records if "characters_baseline" in record.details]
        if not pairs:
            return {}
        lengths = ([record.details[name] for record in pairs] for name in ("characters", "characters_baseline"))
        return {"length_controlled": length_controlled([record.score for record in pairs], *lengths)}

    def preference(self, baseline: Engine, item: Item, answer: str, other: str) -> float:
        """0 to 1: how much the judge prefers the first answer, mean over both orders; 0.5 for the same words."""
        if answer == other:
            return 0.5
        judge = self._judge or baseline
        return (self._first(judge, item, answer, other) + 1 - self._first(judge, item, other, answer)) / 2

    def _first(self, judge: Engine, item: Item, first: str, second: str) -> float:
        """The probability that the judge names the first answer, of naming either."""
        frame = Frame.of(judge.model.require_tokenizer())
        prompt = _asks_the_judge(frame, item.material, first, second)
        options = [frame.tokens(verdict) for verdict in VERDICTS]
        better, worse = likelihoods(judge, prompt, frame.tokens(frame.after + LEAD), options, [])
        return 1 / (1 + math.exp(min(700.0, worse.total - better.total)))

    def effort(self, item: Item) -> Effort:
        """The judge reads both answers in two orders: one counts for either side."""
        own = super().effort(item)
        return replace(own, prefills=own.prefills + 1)

    @cached_property
    def _judge(self) -> Engine | None:
        """The judge's engine, None where the uncompressed model judges. It is closed with the task."""
        if not self.judge:
            return None
        from thrifty.api import open_engine

        engine = open_engine(self.judge, prefix_tree=False)
        weakref.finalize(self, engine.close)
        return engine

    def _item(self, haystack: Haystack, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        asked = chance.choice(ASKS)
        around = len(frame.before) + (haystack.size(SEPARATOR + asked) + 1 if self.mode == "aware" else 0)
        text = haystack.context(chance, self.length - around, [])
        prompt, fed = frame.first(text, asked, "", self.mode)
        turns = (TaskTurn(fed),)
        material = {"text": text, "asked": asked}
        judged = len(_asks_the_judge(frame, material, "", "")) + 2 * self.limit
        judged += len(frame.tokens(frame.after + LEAD)) + max(len(frame.tokens(verdict)) for verdict in VERDICTS)
        return self.item(number, prompt, turns, max(self.room(prompt, turns), judged), material)


def _asks_the_judge(frame: Frame, material: Mapping[str, str], first: str, second: str) -> Tokens:
    """What the judge reads before it says its verdict."""
    return frame.before + frame.tokens(JUDGED.format(**material, first=first, second=second))
