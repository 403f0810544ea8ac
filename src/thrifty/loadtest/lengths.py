"""How long prompts and answers are, in tokens: fixed, uniform, or pairs from a file."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.loadtest.errors import LoadError

NAMES = (("input", "output"), ("prompt_len", "output_len"), ("input_length", "output_length"))
"""How files call the two numbers."""


@dataclass(frozen=True)
class Lengths:
    """Every whole number from `low` to `high` is equally likely."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """From "1024", or "512-1536" for a range. Raises LoadError naming the text."""
        matched = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", text)
        if matched is None:
            raise LoadError(f"{text!r} is no length; write e.g. 1024, or 512-1536 for a range")
        low, high = int(matched[1]), int(matched[2] or matched[1])
        if not 1 <= low <= high:
            raise LoadError(f"{text!r} is no range of lengths: it must ascend from 1 or more")
        return cls(low, high)

    def draw(self, chance: random.Random) -> int:
        """One of them."""
        return chance.randint(self.low, self.high)


@dataclass(frozen=True)
class Shape:
    """Tokens of a prompt, its shared beginning included, and of the answer that is asked for."""

    prompt: int
    answer: int


def draw_shapes(count: int, prompt: Lengths, answer: Lengths, chance: random.Random) -> list[Shape]:
    """So many requests, each drawn on its own."""
    return [Shape(prompt.draw(chance), answer.draw(chance)) for _ in range(count)]


def read_shapes(path: Path) -> list[Shape]:
    """The requests of a file: a line each, as JSON ({"input": 812, "output": 96}) or two numbers ("812 96", "812,96").

    Raises LoadError naming the line.
    """
    shapes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            shapes.append(_shape(line, f"{path}, line {number}"))
    if not shapes:
        raise LoadError(f"{path} holds no lengths; write a line for each request, such as 812 96")
    return shapes


def repeated(shapes: Sequence[Shape], count: int, chance: random.Random) -> list[Shape]:
    """So many of the shapes in a random order; all come before any comes again."""
    drawn: list[Shape] = []
    while len(drawn) < count:
        drawn += chance.sample(shapes, len(shapes))
    return drawn[:count]


def _shape(line: str, place: str) -> Shape:
    try:
        if line.lstrip().startswith("{"):
            fields = json.loads(line)
            prompt, answer = next((fields[first], fields[last]) for first, last in NAMES if first in fields)
        else:
            prompt, answer = re.split(r"[\s,;]+", line.strip())
        shape = Shape(int(prompt), int(answer))
    except (ValueError, KeyError, StopIteration) as error:
        raise LoadError(f'{place} is {line[:60]!r}; write e.g. 812 96, or {{"input": 812, "output": 96}}') from error
    if shape.prompt < 1 or shape.answer < 1:
        raise LoadError(f"{place} asks for {shape.prompt} and {shape.answer} tokens; both must be 1 or more")
    return shape
