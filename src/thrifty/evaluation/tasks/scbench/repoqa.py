"""Functions that are found by what they do, and repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Session, SharedContext
from thrifty.evaluation.tasks.scbench import _code
from thrifty.evaluation.tasks.task import Item, TaskTurn


@dataclass(frozen=True, kw_only=True)
class RepoQa(SharedContext):
    """SCBench's Code.RepoQA over functions of Python's standard library, their documentation taken out: its first
    sentence tells which one is to be repeated. Options: see `SharedContext`.
    """

    name: ClassVar[str] = "scbench-repoqa"
    metric: ClassVar[str] = "share of functions repeated"
    limit: ClassVar[int] = 180
    stop: ClassVar[tuple[str, ...]] = (_code.FENCE,)

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many functions as fit."""
        made = _code.drawn(chance, frame, room - frame.size(_code.OPENING), self.half, self.questions)
        if made is None:
            raise self.too_short()
        asked, codes = made
        context = _code.OPENING + _code.GAP.join(codes)
        return Session(context, tuple(map(_code.for_its_code, asked)), {"codes": codes})

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """1 where it is the asked function nearly to the letter."""
        return float(_code.repeats(answer, turn.expected[0], item.material["codes"]))
