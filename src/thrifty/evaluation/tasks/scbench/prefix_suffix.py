"""Strings of which the beginning and the end are known."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.halves import Half, half_of
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, SharedContext, filled

LETTERS, KNOWN = 20, 5  # of a string, and of its beginning and of its end
OPENING = "Below is a list of random strings; you will be asked to complete some of them.\n\n"
ASK = 'Which string in the list above begins with "{head}" and ends with "{tail}"?'
LEAD = 'The string is "'
STOP = '"'


@dataclass(frozen=True, kw_only=True)
class PrefixSuffix(SharedContext):
    """SCBench's Retr.Prefix-Suffix: the string that begins and ends as told. Options: see `SharedContext`."""

    name: ClassVar[str] = "scbench-prefix-suffix"
    limit: ClassVar[int] = 32
    stop: ClassVar[tuple[str, ...]] = (STOP, "\n")

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many strings as fit."""
        room -= frame.size(OPENING)
        lines = filled(lambda line: frame.size(line + "\n"), room, _strings(chance, self.half))
        if len(lines) < self.questions:
            raise self.too_short()
        asked = chance.sample(lines, self.questions)
        return Session(OPENING + "\n".join(lines), tuple(map(_question, asked)))


def _strings(chance: random.Random, half: Half) -> Iterator[str]:
    """Strings of a half without end, no two with the same beginning."""
    heads: set[str] = set()
    while True:
        text = "".join(chance.choices(string.ascii_lowercase + string.digits, k=LETTERS))
        if text[:KNOWN] not in heads and half_of(text) == half:
            heads.add(text[:KNOWN])
            yield text


def _question(text: str) -> Question:
    return Question(ASK.format(head=text[:KNOWN], tail=text[-KNOWN:]), LEAD, (text,), text + STOP)
