"""Questions about real documents: essays, a language's reference, a library's manual."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from thrifty.errors import PromptError
from thrifty.evaluation.halves import Half
from thrifty.evaluation.tasks import _books
from thrifty.evaluation.tasks._books import Fact, Kind, Passage
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, SharedContext, filled

Document = tuple[Sequence[Passage], Sequence[Passage]]
"""The passages of a document, and those that fill a context which is longer than it."""

OPENING = "Read the text and answer the question about it. Say the answer alone and nothing else.\n\n"
GAP = "\n\n"  # between passages
TRIES = 20  # places of a document that are looked at for one with enough to ask about


@dataclass(frozen=True, kw_only=True)
class LongDocuments(SharedContext):
    """Consecutive passages of a document that lies on every installation; questions that they answer in a word. Where
    the context is longer than the document, passages of the reference follow.

    document: `essays` (the package's prose: who said what, how a sentence goes on), `reference` (of Python: the
    same), `manual` (of Python's library: which function does this, what is the default), or `any` by chance.
    mode, sharing, questions, golden: see `SharedContext`.
    """

    name: ClassVar[str] = "long-documents"
    limit: ClassVar[int] = 16

    document: Literal["any", "essays", "reference", "manual"] = "any"

    def stock(self, tokenizer: Any) -> list[Document]:
        """The documents that are read."""
        kinds: Sequence[Kind] = get_args(Kind) if self.document == "any" else [self.document]
        return [document(kind, self.half) for kind in kinds]

    def session(self, chance: random.Random, frame: Frame, stock: list[Document], room: int) -> Session:
        """Passages from a random place on, and questions."""
        chosen_document = chance.choice(stock)
        for _ in range(TRIES):
            context, facts = excerpt(chance, frame, room - frame.size(OPENING), chosen_document)
            chosen = _books.told_once(context, facts, chance, self.questions)
            if len(chosen) == self.questions:
                return Session(OPENING + context, tuple(map(question, chosen)))
        raise self.too_short()


def document(kind: Kind, half: Half) -> Document:
    """A document with what may follow it."""
    return _books.passages(kind, half), () if kind == "reference" else _books.passages("reference", half)


def question(fact: Fact) -> Question:
    """A fact as a question that is answered in a word."""
    return Question(fact.question, fact.lead, (fact.answer,), f" {fact.answer}")


def excerpt(chance: random.Random, frame: Frame, room: int, document: Document) -> tuple[str, list[Fact]]:
    """(consecutive passages from a random place, at most `room` tokens; what can be asked about them). After the last
    passage comes the first, and after all of them what fills. Raises PromptError where the room is for more.
    """
    own, filling = document
    place = chance.randrange(len(own))
    passages = [*own[place:], *own[:place], *filling]
    taken = passages[: len(filled(lambda text: frame.size(text + GAP), room, (passage.text for passage in passages)))]
    if len(taken) == len(passages):
        raise PromptError(f"the documents have not enough text for {room} tokens; use a smaller --length")
    return GAP.join(passage.text for passage in taken), [fact for passage in taken for fact in passage.facts]
