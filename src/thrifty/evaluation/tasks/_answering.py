"""Tasks whose model answers in words: one or several questions over one compressed context."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from thrifty.evaluation.asking import ask
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.tasks.task import Item, Record, Task, Tokens, Turn

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Answering(Task):
    """Runs the turns of an item in order; the score is the mean over the turns.

    A later turn is run as the same prompt with all that was said before forced after it, which gives the cache that a
    conversation has: the context is compressed before the first question, and no turn sees the next one's.
    """

    writes: ClassVar[bool] = True
    limit: ClassVar[int] = 12  # tokens of an answer
    stop: ClassVar[tuple[str, ...]] = ("\n",)

    def grade(self, item: Item, turn: Turn, answer: str) -> float:
        """0 to 1: the share of what is expected that the answer names as whole words."""
        return sum(names(answer, one) for one in turn.expected) / len(turn.expected)

    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        started = time.perf_counter()
        said: Tokens = ()
        answers, scores = [], []
        for turn in item.turns:
            reply = ask(engine, item.prompt, said + turn.tokens, self.limit, cache, stop=self.stop)
            said += turn.tokens + reply.tokens
            answers.append(reply.text.strip())
            scores.append(self.grade(item, turn, reply.text))
        return Record(
            task=self.label,
            item=item.identity,
            score=sum(scores) / len(scores),
            output="\n".join(answers),
            seconds=time.perf_counter() - started,
            expected="\n".join(", ".join(turn.expected) for turn in item.turns),
            details={"turns": scores} if len(scores) > 1 else {},
        )

    def room(self, prompt: Tokens, turns: tuple[Turn, ...]) -> int:
        """Tokens that a run holds at most."""
        return len(prompt) + sum(len(turn.tokens) + self.limit for turn in turns)


def names(answer: str, expected: str) -> bool:
    """Whether a text holds another one as whole words, upper and lower case alike."""
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", answer, re.IGNORECASE) is not None
