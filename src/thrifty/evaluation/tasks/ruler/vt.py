"""Variable tracking: which variables have a value that is handed on from one to the next."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._framing import SEPARATOR, Frame
from thrifty.evaluation.tasks._sessions import Session, Sessions
from thrifty.evaluation.tasks.ruler import _chains

HOPS, CHAINS, LETTERS = 4, 1, 5
EXAMPLE_LETTERS, EXAMPLE_ROOM = 3, 300  # of the solved example: letters of a name, tokens


@dataclass(frozen=True, kw_only=True)
class VariableTracking(Sessions):
    """RULER's vt (2404.06654, §3.2): one chain of four links in lines of noise; all five variables are asked for.

    mode: see `Mode`. example: a short solved text stands in front, as in RULER's code. Score: the share of the
    variables that the answer names.
    """

    name: ClassVar[str] = "ruler-vt"
    metric: ClassVar[str] = "share of variables named"
    limit: ClassVar[int] = 30
    stop: ClassVar[tuple[str, ...]] = ()  # a list may have lines

    example: bool = True

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """A chain in noise, after a solved one."""
        shown = self._example(chance, frame) if self.example else ""
        made = _chains.chains(chance, self.half, CHAINS, HOPS, LETTERS)
        text = _chains.text(chance, frame, room - frame.size(shown + _chains.OPENING), made)
        if text is None:
            raise self.too_short()
        return Session(shown + _chains.OPENING + text, (made[0].question(),))

    def _example(self, chance: random.Random, frame: Frame) -> str:
        made = _chains.chains(chance, self.half, CHAINS, HOPS, EXAMPLE_LETTERS)
        room = max(EXAMPLE_ROOM, sum(frame.size(statement + "\n") for statement in made[0].statements()))
        question = made[0].question()
        text = _chains.text(chance, frame, room, made)
        return f"{_chains.OPENING}{text}{SEPARATOR}{question.text}\n{question.lead}{question.right}{SEPARATOR}"
