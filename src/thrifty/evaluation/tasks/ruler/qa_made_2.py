"""Questions that take two of many made-up documents."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._documents import Person, Town, about_a_birthplace
from thrifty.evaluation.tasks.ruler._reading import MadeDocuments


@dataclass(frozen=True, kw_only=True)
class QaMade2(MadeDocuments):
    """In the place of RULER's qa_2 (HotpotQA), with made-up documents: a person's leads to a town's."""

    name: ClassVar[str] = "ruler-qa-made-2"

    def ask(self, chance: random.Random, person: Person, town: Town) -> tuple[str, str]:
        """About the town of birth."""
        return about_a_birthplace(chance, person, town)
