"""Tasks whose model answers in words: one or several questions over one compressed context."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from thrifty.evaluation.asking import Reply, ask, ask_each
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.tasks.task import Answered, Effort, Item, Record, Task, TaskTurn, Tokens

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Answering(Task):
    """Runs the turns of an item; the score is the mean over the turns.

    The context is compressed before the first question, and no turn sees a later one's. Turns whose words are known
    beforehand are forks of one compressed context. One that comes after the model's own answers is run as the same
    prompt with all that was said before forced after it, which gives the cache that a conversation has.
    """

    writes: ClassVar[bool] = True
    limit: ClassVar[int] = 12  # tokens of an answer
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    verbatim: ClassVar[bool] = False  # whether the blanks around an answer belong to it

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """0 to 1: the share of what is expected that the answer names as whole words."""
        return sum(names(answer, wanted) for wanted in turn.expected) / len(turn.expected)

    def fed(self, item: Item) -> list[Tokens] | None:
        """All that is fed after the prompt before each turn's answer: its own question alone, unless a task has turns
        that know of earlier ones; None where that takes the model's answers.
        """
        return [turn.tokens for turn in item.turns]

    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        started = time.perf_counter()
        answers = [reply.text for reply in self._replies(engine, item, cache)]
        return self.graded(item, answers, time.perf_counter() - started)

    def graded(self, item: Item, answers: Sequence[str], seconds: float) -> Record:
        """The record of an item's answers, one a turn."""
        scores = self._scores(item, answers)
        details: dict[str, Any] = {"turns": scores} if len(scores) > 1 else {}
        if self.verbatim or len(scores) > 1:
            details["answers"] = list(answers)
        return Record(
            task=self.label,
            item=item.identity,
            score=sum(scores) / len(scores),
            output="\n".join(answer.strip() for answer in answers),
            seconds=seconds,
            expected="\n".join(", ".join(turn.expected) for turn in item.turns),
            details=details,
        )

    def effort(self, item: Item) -> Effort:
        """Turns share a prefill where they are fed the same first token. Those that come after the model's own answers
        share none, and each is fed all that was said before.
        """
        fed, prompt = self.fed(item), len(item.prompt)
        if fed is None:
            said = itertools.accumulate(len(turn.tokens) + self.limit for turn in item.turns)
            return Effort(prompt, len(item.turns), sum(said))
        return Effort(prompt, len({tokens[0] for tokens in fed}), sum(len(tokens) + self.limit for tokens in fed))

    def scrambled(self, engine: Engine, own: Answered, others: Sequence[Answered]) -> float:
        """The answers of one item, graded by what is expected of others."""
        answers = own.record.details.get("answers", [own.record.output])
        return statistics.fmean(
            statistics.fmean(self._scores(self.expecting(own.item, other.item), answers)) for other in others
        )

    def expecting(self, item: Item, other: Item) -> Item:
        """An item with another one's right answers."""
        turns = tuple(
            replace(turn, expected=theirs.expected) for turn, theirs in zip(item.turns, other.turns, strict=True)
        )
        return replace(item, turns=turns, material=other.material)

    def room(self, prompt: Tokens, turns: tuple[TaskTurn, ...]) -> int:
        """Tokens that a run holds at most."""
        return len(prompt) + sum(len(turn.tokens) + max(self.limit, len(turn.right)) for turn in turns)

    def _scores(self, item: Item, answers: Sequence[str]) -> list[float]:
        return [self.grade(item, turn, answer) for turn, answer in zip(item.turns, answers, strict=True)]

    def _replies(self, engine: Engine, item: Item, cache: Tables | None) -> list[Reply]:
        fed = self.fed(item)
        if fed is None:
            return self._converse(engine, item, cache)
        return ask_each(engine, item.prompt, fed, self.limit, cache, stop=self.stop)

    def _converse(self, engine: Engine, item: Item, cache: Tables | None) -> list[Reply]:
        said: Tokens = ()
        replies = []
        for turn in item.turns:
            replies.append(ask(engine, item.prompt, said + turn.tokens, self.limit, cache, stop=self.stop))
            said += turn.tokens + replies[-1].tokens
        return replies


def names(answer: str, expected: str) -> bool:
    """Whether a text holds another one as whole words, upper and lower case alike."""
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", answer, re.IGNORECASE) is not None


def share_of_first(answer: str, expected: Sequence[str], known: Iterable[str]) -> float:
    """The share of what is expected among as many of the known words as are expected, the answer's first ones, each
    counted once: so that naming all of them does not pay.
    """
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)"
    said = dict.fromkeys(value.lower() for value in re.findall(pattern, answer, re.IGNORECASE))
    first = list(said)[: len(expected)]
    return sum(value.lower() in first for value in expected) / len(expected)
