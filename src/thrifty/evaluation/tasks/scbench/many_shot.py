"""Learning from many examples what made-up labels mean."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.halves import half_of
from thrifty.evaluation.tasks._answering import share_of_first
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, SharedContext, filled
from thrifty.evaluation.tasks.task import Item, TaskTurn

ANIMALS = (
    "bear camel cat cow deer dog duck eagle fox frog goat hen horse lion monkey mouse owl pig rabbit seal sheep snake "
    "swan tiger whale wolf zebra"
)
FOOD = (
    "apple banana bread butter cake carrot cheese cherry corn egg grape honey lemon meat onion orange pasta peach pear "
    "pepper plum potato rice salad soup sugar tomato"
)
CLOTHES = (
    "belt blouse boot cap coat dress glove hat jacket jeans scarf shirt shoe shorts skirt sock suit sweater tie "
    "trousers vest"
)
TOOLS = (
    "axe brush chisel drill file hammer knife ladder mallet nail pliers rake ruler saw scissors screwdriver shovel "
    "spade wrench"
)
KINDS = (ANIMALS, FOOD, CLOTHES, TOOLS)
LABELS = ("blick", "dax", "fep", "gorp", "kiki", "lorp", "mip", "norg", "plim", "quib", "tazzle", "vorn", "wug", "zib")
OPENING = "Each word below has a label. Learn from the examples which words get which label.\n\n"
EXAMPLE = "Word: {word}\nLabel: {label}\n"
ASK = "Which label does this word get?\nWord: {word}"
LEAD = "Label:"
LEAST = 3  # examples of a label


@dataclass(frozen=True, kw_only=True)
class ManyShot(SharedContext):
    """In the place of SCBench's ICL.ManyShot (tasks of BIG-bench Hard): words of four kinds with made-up labels, and
    new words of these kinds. Chance is a quarter. Options: see `SharedContext`.
    """

    name: ClassVar[str] = "scbench-many-shot"
    limit: ClassVar[int] = 10

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """Examples that fit, of words that are not asked for; a word may come more than once. Asked are words of the
        half.
        """
        labels = chance.sample(LABELS, len(KINDS))
        known = {word: label for words, label in zip(KINDS, labels, strict=True) for word in words.split()}
        own = [word for word in known if half_of(word) == self.half]
        asked = chance.sample(own, self.questions)
        shown = [word for word in known if word not in asked]
        examples = (EXAMPLE.format(word=word, label=known[word]) for word in _endless(chance, shown))
        taken = filled(lambda example: frame.size(example + "\n"), room - frame.size(OPENING), examples)
        if len(taken) < LEAST * len(KINDS):
            raise self.too_short()
        questions = tuple(Question(ASK.format(word=word), LEAD, (known[word],), f" {known[word]}") for word in asked)
        return Session(OPENING + "\n".join(taken), questions)

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """Whether the first label that the answer names is the right one."""
        return share_of_first(answer, turn.expected, LABELS)


def _endless(chance: random.Random, words: Sequence[str]) -> Iterator[str]:
    """All words in random order, again and again."""
    while True:
        yield from chance.sample(words, len(words))
