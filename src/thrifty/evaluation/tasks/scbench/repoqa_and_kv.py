"""Functions that are found by what they do, and values of keys between them, in turn."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._answering import names
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Session, SharedContext, filled, in_turn
from thrifty.evaluation.tasks.scbench import _code, _pairs
from thrifty.evaluation.tasks.task import Item, TaskTurn


@dataclass(frozen=True, kw_only=True)
class RepoQaAndKv(SharedContext):
    """SCBench's Mix.RepoQA+KV: half the context are functions, half are pairs, line by line among them. The first
    question, and every second one after it, asks for a value, the others for a function. Options: see `SharedContext`.
    """

    name: ClassVar[str] = "scbench-repoqa-and-kv"
    metric: ClassVar[str] = "share of values and functions repeated"
    limit: ClassVar[int] = 180
    stop: ClassVar[tuple[str, ...]] = (_code.FENCE,)

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many pairs and functions as fit."""
        values, functions = (self.questions + 1) // 2, self.questions // 2
        room -= frame.size(_code.OPENING)
        made = _code.drawn(chance, frame, room // 2, self.half, functions)
        if made is None:
            raise self.too_short()
        asked, codes = made
        room -= sum(frame.size(code + _code.GAP) for code in codes)
        pairs = itertools.tee(_pairs.pairs(chance, self.half))
        lines = filled(lambda line: frame.size(line + _code.GAP), room, itertools.starmap(_pairs.entry, pairs[0]))
        if len(lines) < values:
            raise self.too_short()
        known = chance.sample(list(itertools.islice(pairs[1], len(lines))), values)
        questions = in_turn(
            [_pairs.question(*pair) for pair in known], [_code.for_its_code(function) for function in asked]
        )
        texts = chance.sample([*codes, *lines], len(codes) + len(lines))
        return Session(_code.OPENING + _code.GAP.join(texts), questions, {"codes": codes})

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """Whether it names the value before the quote that ends it, or repeats the function nearly to the letter."""
        (expected,) = turn.expected
        if "\n" in expected:
            return float(_code.repeats(answer, expected, item.material["codes"]))
        return float(names(answer.partition(_pairs.STOP)[0], expected))
