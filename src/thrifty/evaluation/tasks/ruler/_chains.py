"""Chains of variables: one is given a number, and each of the others the one before it."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.evaluation.halves import Half, half_of
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, filled
from thrifty.evaluation.tasks.ruler._needles import NOISE
from thrifty.evaluation.tasks.tracing import interleaved

FIRST = "VAR {name} = {value}"
NEXT = "VAR {name} = VAR {other}"
OPENING = "The text below assigns values to variables, also by way of other variables. Keep track of them.\n\n"
ASK = "Which variables have the value {value} in the text above?"
LEAD = "In the text above {count} variables have the value {value}; they are:"


@dataclass(frozen=True)
class Chain:
    """names: variables, in the order in which they are assigned. value: of all of them."""

    names: tuple[str, ...]
    value: str

    def statements(self) -> list[str]:
        """What assigns them."""
        links = [NEXT.format(name=name, other=other) for other, name in itertools.pairwise(self.names)]
        return [FIRST.format(name=self.names[0], value=self.value), *links]

    def question(self) -> Question:
        """Which variables have the value."""
        lead = LEAD.format(count=len(self.names), value=self.value)
        return Question(ASK.format(value=self.value), lead, self.names, f" {', '.join(self.names)}.")


def chains(chance: random.Random, half: Half, count: int, hops: int, letters: int) -> list[Chain]:
    """Chains of `hops` links of variables of a half; no variable and no value twice. letters: of a variable's name."""
    names: dict[str, None] = {}
    while len(names) < count * (hops + 1):
        name = "".join(chance.choices(string.ascii_uppercase, k=letters))
        if half_of(name) == half:
            names[name] = None
    values = chance.sample(range(10000, 100000), count)
    given = iter(names)
    return [Chain(tuple(itertools.islice(given, hops + 1)), str(value)) for value in values]


def text(chance: random.Random, frame: Frame, room: int, made: Sequence[Chain]) -> str | None:
    """The statements of all chains among lines of noise, those of a chain in their order; None where they alone take
    more than `room` tokens.
    """
    statements = interleaved(chance, [chain.statements() for chain in made])
    room -= sum(frame.size(statement + "\n") for statement in statements)
    if room < 0:
        return None
    lines = filled(lambda line: frame.size(line + "\n"), room, itertools.repeat(NOISE))
    for place, statement in reversed(list(zip(_places(chance, len(lines), len(statements)), statements, strict=True))):
        lines.insert(place, statement)
    return "\n".join(lines)


def _places(chance: random.Random, lines: int, count: int) -> list[int]:
    """Where so many statements are put between lines, in order."""
    return sorted(chance.randint(0, lines) for _ in range(count))
