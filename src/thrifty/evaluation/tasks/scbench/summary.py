"""What functions do, in a sentence."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Session, SharedContext
from thrifty.evaluation.tasks.scbench import _code
from thrifty.evaluation.tasks.task import Item, TaskTurn
from thrifty.evaluation.textual import rouge_l


@dataclass(frozen=True, kw_only=True)
class Summary(SharedContext):
    """In the place of SCBench's En.Sum (papers, ROUGE-Lsum with their abstracts): functions of Python's standard
    library, whose documentation's first sentence is the summary. Options: see `SharedContext`.
    """

    name: ClassVar[str] = "scbench-summary"
    metric: ClassVar[str] = "ROUGE-L with the documentation's first sentence"
    limit: ClassVar[int] = 48

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many functions as fit."""
        made = _code.drawn(chance, frame, room - frame.size(_code.OPENING), self.half, self.questions)
        if made is None:
            raise self.too_short()
        asked, codes = made
        context = _code.OPENING + _code.GAP.join(codes)
        return Session(context, tuple(map(_code.for_its_summary, asked)))

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """F1 of the longest common subsequence of words."""
        return rouge_l(answer, turn.expected[0])
