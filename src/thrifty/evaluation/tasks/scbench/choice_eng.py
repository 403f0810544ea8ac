"""Questions about an essay with four answers to choose from."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks import _books
from thrifty.evaluation.tasks._books import Fact
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, SharedContext
from thrifty.evaluation.tasks.long_documents import Document, document, excerpt
from thrifty.evaluation.tasks.task import Item, TaskTurn

LETTERS = "ABCD"
OPENING = "Read the text and answer the questions about it by the letter of the right answer.\n\n"
LEAD = "The letter of the right answer is"


@dataclass(frozen=True, kw_only=True)
class ChoiceEng(SharedContext):
    """In the place of SCBench's En.MultiChoice (novels): questions of `scbench-qa-eng`; the wrong answers are those of
    other questions about the same text. The first letter of the answer counts; chance is a quarter. Options: see
    `SharedContext`.
    """

    name: ClassVar[str] = "scbench-choice-eng"
    limit: ClassVar[int] = 8

    def stock(self, tokenizer: Any) -> Document:
        """The essays."""
        return document("essays", self.half)

    def session(self, chance: random.Random, frame: Frame, stock: Document, room: int) -> Session:
        """Passages from a random place on, and questions."""
        context, facts = excerpt(chance, frame, room - frame.size(OPENING), stock)
        told = _books.told_once(context, facts, chance, len(facts))
        answers: dict[str, list[str]] = {}
        for fact in told:
            answers.setdefault(fact.kind, []).append(fact.answer)
        asked = [fact for fact in told if len(answers[fact.kind]) >= len(LETTERS)][: self.questions]
        if len(asked) < self.questions:
            raise self.too_short()
        return Session(OPENING + context, tuple(_question(chance, fact, answers[fact.kind]) for fact in asked))

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """Whether the first letter of the four is the right one."""
        letter = re.search(rf"(?<!\w)[{LETTERS}](?!\w)", answer)
        return float(letter is not None and letter[0] == turn.expected[0])


def _question(chance: random.Random, fact: Fact, answers: Sequence[str]) -> Question:
    """A fact as a question with four answers, one of them right."""
    wrong = chance.sample([answer for answer in answers if answer != fact.answer], len(LETTERS) - 1)
    options = chance.sample([fact.answer, *wrong], len(LETTERS))
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    letter = LETTERS[options.index(fact.answer)]
    return Question("\n".join([fact.choice or fact.question, *lines]), LEAD, (letter,), f" {letter}.")
