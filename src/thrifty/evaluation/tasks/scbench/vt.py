"""Which variables have a value, where several chains hand values on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Session, SharedContext
from thrifty.evaluation.tasks.ruler import _chains

HOPS, LEAST, LETTERS = 2, 2, 5  # links and number of chains, letters of a name


@dataclass(frozen=True, kw_only=True)
class MultiHop(SharedContext):
    """SCBench's Retr.MultiHop: chains of two links in noise, at least two; a question asks for the variables of one.
    Options: see `SharedContext`.
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
        return Session(_chains.OPENING + text, tuple(chain.question() for chain in asked))
