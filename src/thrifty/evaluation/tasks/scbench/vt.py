"""Which variables have a value, where several chains hand values on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._answering import share_of_first
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Session, SharedContext
from thrifty.evaluation.tasks.ruler import _chains
from thrifty.evaluation.tasks.task import Item, TaskTurn

HOPS, LEAST, LETTERS = 2, 2, 5  # links and number of chains, letters of a name


@dataclass(frozen=True, kw_only=True)
class MultiHop(SharedContext):
    """SCBench's Retr.MultiHop: chains of two links in noise, at least two; a question asks for the variables of one. Of
    an answer only as many variables count as the chain has, so that naming all of them does not pay. Options: see
    `SharedContext`.
    """

    name: ClassVar[str] = "scbench-vt"
    metric: ClassVar[str] = "share of variables named, over the questions"
    limit: ClassVar[int] = 30

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """A chain a question."""
        made = _chains.chains(chance, self.half, max(LEAST, self.questions), HOPS, LETTERS)
        text = _chains.text(chance, frame, room - frame.size(_chains.OPENING), made)
        if text is None:
            raise self.too_short()
        asked = chance.sample(made, self.questions)
        variables = [name for chain in made for name in chain.names]
        questions = tuple(chain.question() for chain in asked)
        return Session(_chains.OPENING + text, questions, {"variables": variables})

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """0 to 1, by the first variables that the answer names."""
        return share_of_first(answer, turn.expected, item.material["variables"])
