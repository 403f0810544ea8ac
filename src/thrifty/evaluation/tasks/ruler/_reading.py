"""Questions over many short documents, of which one or two hold the answer."""

from __future__ import annotations

import random
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, Sessions
from thrifty.evaluation.tasks.ruler._documents import Person, Town, numbered, pairs

OPENING = "Answer the question from the documents below. Say the answer alone and nothing else.\n\n"
LEAD = "Answer:"
HEADING = "Document 1000:\n\n\n"  # what stands around a document, at most


@dataclass(frozen=True, kw_only=True)
class MadeDocuments(Sessions):
    """Question answering of RULER (2404.06654, §3.4) over made-up documents: those that hold the answer among others
    of the same form.

    mode: see `Mode`. questions: people who are asked about, each by a question that knows of no other. Score: whether
    the answer holds the right one.
    """

    metric: ClassVar[str] = "share of right answers"
    limit: ClassVar[int] = 32

    questions: Annotated[int, Field(ge=1, le=16)] = 1

    @abstractmethod
    def ask(self, chance: random.Random, person: Person, town: Town) -> tuple[str, str]:
        """(a question, its answer) about a person and the town of birth."""

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many documents as fit, in random order."""
        room -= frame.size(OPENING)
        texts: list[str] = []
        people: list[tuple[Person, Town]] = []
        for person, town in pairs(chance, self.half):
            room -= sum(frame.size(HEADING + text) for text in (person.text(), town.text()))
            if room < 0:
                break
            people.append((person, town))
            texts += [person.text(), town.text()]
        if len(people) <= self.questions:
            raise self.too_short()
        asked = [self.ask(chance, *people[place]) for place in chance.sample(range(len(people)), self.questions)]
        chance.shuffle(texts)
        questions = tuple(Question(text, LEAD, (answer,), f" {answer}") for text, answer in asked)
        return Session(OPENING + numbered(texts), questions)
