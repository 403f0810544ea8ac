"""Questions that one of many made-up documents answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._documents import Person, Town, about_a_person
from thrifty.evaluation.tasks.ruler._reading import MadeDocuments


@dataclass(frozen=True, kw_only=True)
class QaMade1(MadeDocuments):
    """In the place of RULER's qa_1 (SQuAD), with made-up documents: one holds the answer."""

    name: ClassVar[str] = "ruler-qa-made-1"

    def ask(self, chance: random.Random, person: Person, town: Town) -> tuple[str, str]:
        """About the person."""
        return about_a_person(chance, person)
