"""Needles in a haystack, in RULER's eight kinds: what differs is data of each task's class."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._haystack import Haystack
from thrifty.evaluation.tasks._sessions import Question, Session, Sessions, filled
from thrifty.evaluation.tasks.ruler._words import Kind, drawn, keys

Hay = Literal["noise", "essay", "needles"]
Hidden = Mapping[str, Sequence[str]]
"""The values of every key that is hidden."""

NOISE = "The sky is wide. The road is long. The rain is cold. We walk on. And back we come."
NEEDLE = "A special {kind} for {key} is: {value}."
ONE = "The text below hides a special {kind}. Keep it in mind: you will be asked for it."
SEVERAL = "The text below hides some special {kind}s. Keep them in mind: you will be asked for them."
ASK_ONE = "What is the special {kind} for {keys} in the text above?"
ASK_SEVERAL = "What are all the special {kind}s for {keys} in the text above?"
LEAD_ONE = "The special {kind} for {keys} in the text above is"
LEAD_SEVERAL = "The special {kind}s for {keys} in the text above are"
WRITTEN = {"word": "word", "number": "number", "uuid": "identifier"}


@dataclass(frozen=True, kw_only=True)
class Needles(Sessions):
    """Needle in a haystack (RULER, 2404.06654, §3.1). Score: the share of the asked values that the answer names.

    mode: see `Mode`. hay: lines of noise, the package's prose, or needles with keys of their own. key, value: what
    these are. told: keys that are hidden, each with `values` values. asked: keys in one question.
    """

    metric: ClassVar[str] = "share of values named"
    limit: ClassVar[int] = 128
    stop: ClassVar[tuple[str, ...]] = ()  # a list may have lines

    hay: ClassVar[Hay] = "essay"
    key: ClassVar[Kind] = "word"
    value: ClassVar[Kind] = "number"
    told: ClassVar[int] = 1
    values: ClassVar[int] = 1
    asked: ClassVar[int] = 1

    def stock(self, tokenizer: Any) -> Haystack | None:
        """The prose, where that is the haystack."""
        return Haystack(tokenizer, self.half) if self.hay == "essay" else None

    def session(self, chance: random.Random, frame: Frame, stock: Haystack | None, room: int) -> Session:
        """What is hidden, where, and what is asked of it."""
        names = keys(chance, self.key, self.half)
        hidden = {
            name: [drawn(chance, self.value) for _ in range(self.values)]
            for name in itertools.islice(names, self.hidden_keys())
        }
        needles = [self._needle(name, value) for name, values in hidden.items() for value in values]
        opening = self._opening()
        room -= frame.size(opening)
        if stock is not None:
            text = stock.context(chance, room, needles)
        else:
            text = self._lines(chance, frame, room, needles, self._hay(chance, names))
        return Session(opening + text, self.asked_of(chance, hidden))

    def hidden_keys(self) -> int:
        """How many keys are hidden."""
        return self.told

    def asked_of(self, chance: random.Random, hidden: Hidden) -> tuple[Question, ...]:
        """The question, or several, about what is hidden."""
        return (self.question(chance.sample(list(hidden), self.asked), hidden),)

    def question(self, names: Sequence[str], hidden: Hidden) -> Question:
        """The question for all values of some keys."""
        expected = tuple(value for name in names for value in hidden[name])
        ask, lead = (ASK_SEVERAL, LEAD_SEVERAL) if len(expected) > 1 else (ASK_ONE, LEAD_ONE)
        words = {"kind": WRITTEN[self.value], "keys": _listed(names)}
        return Question(ask.format(**words), lead.format(**words), expected)

    def _opening(self) -> str:
        """What stands above the text."""
        several = self.asked * self.values > 1
        return (SEVERAL if several else ONE).format(kind=WRITTEN[self.value]) + "\n"

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=WRITTEN[self.value], key=key, value=value)

    def _hay(self, chance: random.Random, names: Iterator[str]) -> Iterator[str]:
        """Lines without end, or as long as there are names."""
        if self.hay == "noise":
            return itertools.repeat(NOISE)
        return (self._needle(name, drawn(chance, self.value)) for name in names)

    def _lines(self, chance: random.Random, frame: Frame, room: int, needles: Sequence[str], hay: Iterable[str]) -> str:
        """Lines of hay with the needles at random places among them."""
        room -= sum(frame.size(needle + "\n") for needle in needles)
        if room < 0:
            raise self.too_short()
        lines = filled(lambda line: frame.size(line + "\n"), room, hay)
        for needle in needles:
            lines.insert(chance.randint(0, len(lines)), needle)
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ManyKeys(Needles):
    """One key of many that look alike. questions: keys that are asked for, each by a question that knows of no other:
    RULER has one a context, several cost one prefill.
    """

    questions: Annotated[int, Field(ge=1, le=16)] = 1

    def hidden_keys(self) -> int:
        """At least as many as are asked for."""
        return max(self.told, self.questions)

    def asked_of(self, chance: random.Random, hidden: Hidden) -> tuple[Question, ...]:
        """A question a key."""
        return tuple(self.question([name], hidden) for name in chance.sample(list(hidden), self.questions))


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
