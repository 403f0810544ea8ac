"""Values of keys in a large JSON object."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Session, SharedContext, filled
from thrifty.evaluation.tasks.scbench import _pairs

OPENING = "Below is a JSON object. Its keys and values are random; you will be asked for some of the values.\n\n{\n"
CLOSING = "\n}"


@dataclass(frozen=True, kw_only=True)
class Kv(SharedContext):
    """SCBench's Retr.KV: pairs of identifiers, and the value of a key. Options: see `SharedContext`."""

    name: ClassVar[str] = "scbench-kv"
    limit: ClassVar[int] = 64
    stop: ClassVar[tuple[str, ...]] = (_pairs.STOP, "\n")

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many pairs as fit."""
        made, again = itertools.tee(_pairs.pairs(chance, self.half))
        room -= frame.size(OPENING + CLOSING)
        lines = filled(lambda line: frame.size(line + "\n"), room, itertools.starmap(_pairs.entry, made))
        if len(lines) < self.questions:
            raise self.too_short()
        asked = chance.sample(list(itertools.islice(again, len(lines))), self.questions)
        return Session(OPENING + "\n".join(lines) + CLOSING, tuple(itertools.starmap(_pairs.question, asked)))
