"""Free writing: the prose is continued in the model's own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.quality import passage
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks.task import Item, TaskTurn
from thrifty.evaluation.textual import rouge_l

LEAD = 8  # tokens of the passage that are fed after it was compressed


@dataclass(frozen=True, kw_only=True)
class ContinuationTask(Answering):
    """A passage of the package's prose is compressed and continued greedily by 64 tokens. The score is ROUGE-L against
    the text's own continuation, low for every model: what is told is how far a recipe's text departs.
    """

    name: ClassVar[str] = "continuation"
    metric: ClassVar[str] = "ROUGE-L with the text"
    limit: ClassVar[int] = 64
    stop: ClassVar[tuple[str, ...]] = ()

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        made = []
        for number in range(count):
            taken = LEAD + self.limit
            part = number + 1000 * seed
            cut = passage(tokenizer, self.length + taken + 2, self.length, taken, part=part, half=self.half)
            expected = tokenizer.decode(cut.answer[LEAD:])
            turns = (TaskTurn(cut.answer[:LEAD], (expected,)),)
            made.append(self.item(number, cut.prompt, turns, self.room(cut.prompt, turns)))
        return made

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """ROUGE-L with the text."""
        return rouge_l(answer, turn.expected[0])
