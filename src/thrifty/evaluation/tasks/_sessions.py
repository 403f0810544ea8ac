"""Questions over contexts that are made to measure: one or several a context, in turns or each on its own."""

from __future__ import annotations

import itertools
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from thrifty.errors import PromptError
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import SEPARATOR, Frame, Mode
from thrifty.evaluation.tasks.task import Item, TaskTurn, Tokens


@dataclass(frozen=True)
class Question:
    """text: as the user asks it. lead: the words that begin the answer. expected: what the rest must hold, at least one
    text. right: a right rest, where a conversation may go on from it.
    """

    text: str
    lead: str
    expected: tuple[str, ...]
    right: str = ""


@dataclass(frozen=True)
class Session:
    """A context and what is asked about it, at least one question. material: what else grading needs, JSON-ready."""

    context: str
    questions: tuple[Question, ...]
    material: Mapping[str, Any] = field(default_factory=dict)


def in_turns(
    frame: Frame, context: str, questions: Sequence[Question], mode: Mode
) -> tuple[Tokens, tuple[TaskTurn, ...]]:
    """(what is compressed, the turns) of one conversation: every question but the first comes after an answer."""
    prompt, first = frame.first(context, questions[0].text, questions[0].lead, mode)
    fed = [first, *(frame.next(question.text, question.lead) for question in questions[1:])]
    turns = (
        TaskTurn(tokens, question.expected, right=frame.tokens(question.right))
        for tokens, question in zip(fed, questions, strict=True)
    )
    return prompt, tuple(turns)


def on_their_own(
    frame: Frame, context: str, questions: Sequence[Question], mode: Mode
) -> tuple[Tokens, tuple[TaskTurn, ...]]:
    """(what is compressed, the turns), each as if it were the first. With mode=aware the first question is part of what
    is compressed, and the others come after it.
    """
    prompt, first = frame.first(context, questions[0].text, questions[0].lead, mode)
    rest = [frame.tokens(SEPARATOR + question.text + frame.after + question.lead) for question in questions[1:]]
    turns = (TaskTurn(tokens, question.expected) for tokens, question in zip([first, *rest], questions, strict=True))
    return prompt, tuple(turns)


def after_right_answers(turns: Sequence[TaskTurn]) -> list[Tokens]:
    """What is fed before each turn's answer: its question, after the earlier ones and their right answers."""
    fed: list[Tokens] = []
    said: Tokens = ()
    for turn in turns:
        fed.append(said + turn.tokens)
        said = fed[-1] + turn.right
    return fed


def in_turn(first: Sequence[Question], second: Sequence[Question]) -> tuple[Question, ...]:
    """Questions of two kinds by turns, one of the first kind at the beginning."""
    return tuple(question for pair in itertools.zip_longest(first, second) for question in pair if question is not None)


def filled(size: Callable[[str], int], room: int, entries: Iterable[str]) -> list[str]:
    """As many of the first entries as `room` tokens hold. size: tokens of a text."""
    taken: list[str] = []
    for entry in entries:
        room -= size(entry)
        if room < 0:
            break
        taken.append(entry)
    return taken


@dataclass(frozen=True, kw_only=True)
class Sessions(Answering):
    """Base of tasks that fill a context of `length` tokens and ask about it. mode: see `Mode`.

    A question is asked on its own, as if it were the only one, unless a subclass arranges them otherwise.
    """

    mode: Mode = "agnostic"

    def stock(self, tokenizer: Any) -> Any:
        """What all sessions draw from, made once for all items."""
        return None

    @abstractmethod
    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """A session whose context takes about `room` tokens. Raises PromptError where there is no room for one."""

    def arranged(self, frame: Frame, session: Session) -> tuple[Tokens, tuple[TaskTurn, ...]]:
        """(what is compressed, the turns) of a session."""
        return on_their_own(frame, session.context, session.questions, self.mode)

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        frame, stock = Frame.of(tokenizer), self.stock(tokenizer)
        return [self._item(frame, stock, seed, number) for number in range(count)]

    def _item(self, frame: Frame, stock: Any, seed: int, number: int) -> Item:
        """The session is made anew with less room until its prompt fits: the first one says by how much."""
        room = self.length - len(frame.before)
        while room > 0:
            session = self.session(self.chance(seed, number), frame, stock, room)
            prompt, turns = self.arranged(frame, session)
            if len(prompt) <= self.length:
                return self.item(number, prompt, turns, self.room(prompt, turns), session.material)
            room -= len(prompt) - self.length
        raise self.too_short()

    def too_short(self) -> PromptError:
        """The error where a context has no room for what is asked."""
        return PromptError(f"a context of {self.length} tokens is too short for '{self.label}'; use a larger --length")


@dataclass(frozen=True, kw_only=True)
class SharedContext(Sessions):
    """Base of tasks that ask several questions over one context, which is compressed once (SCBench, 2412.10319, §3).

    mode: aware puts the first question into what is compressed; the later ones are unknown in either. sharing: `turns`
    of one conversation, or `requests` that know nothing of one another. golden: between turns stands the right answer,
    whatever the model said (SCBench's default), else the model's own.
    """

    metric: ClassVar[str] = "share of right answers, over the questions"

    sharing: Literal["turns", "requests"] = "turns"
    questions: Annotated[int, Field(ge=1, le=5)] = 3
    golden: bool = True

    def arranged(self, frame: Frame, session: Session) -> tuple[Tokens, tuple[TaskTurn, ...]]:
        """As one conversation or as requests."""
        arrange = in_turns if self.sharing == "turns" else on_their_own
        return arrange(frame, session.context, session.questions, self.mode)

    def fed(self, item: Item) -> list[Tokens] | None:
        """A turn's question after the earlier ones and their right answers; None with the model's own answers."""
        if self.sharing == "requests":
            return super().fed(item)
        return after_right_answers(item.turns) if self.golden else None
