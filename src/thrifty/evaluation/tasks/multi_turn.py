"""Several questions over one shared context, the next unknown while one is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks._haystack import NAMES, Haystack
from thrifty.evaluation.tasks._sessions import Question, after_right_answers, in_turns
from thrifty.evaluation.tasks.recall import asked, hidden
from thrifty.evaluation.tasks.task import Item, Tokens


@dataclass(frozen=True, kw_only=True)
class MultiTurn(Answering):
    """SCBench's shared context (2412.10319, §3): the cache is compressed once, then asked `turns` times.

    mode: aware puts the first question into what is compressed; the later ones are unknown in either. golden: before
    the next question the right answer stands, whatever the model said (SCBench's default), else the model's own.
    digits: of a number.
    """

    name: ClassVar[str] = "multi-turn"
    metric: ClassVar[str] = "share of numbers found, over the turns"

    mode: Mode = "agnostic"
    turns: Annotated[int, Field(ge=2, le=len(NAMES))] = 3
    golden: bool = True
    digits: Annotated[int, Field(ge=2, le=12)] = 4

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        haystack, frame = Haystack(tokenizer, self.half), Frame.of(tokenizer)
        return [self._item(haystack, frame, seed, number) for number in range(count)]

    def fed(self, item: Item) -> list[Tokens] | None:
        """A turn's question after the earlier ones and their right answers; None with the model's own answers."""
        return after_right_answers(item.turns) if self.golden else None

    def _item(self, haystack: Haystack, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        facts, context = hidden(haystack, frame, chance, self.turns, self.digits, self.length, self.mode)
        questions = [Question(*asked(name), (value,), f" {value}.") for name, value in facts]
        prompt, turns = in_turns(frame, context, questions, self.mode)
        return self.item(number, prompt, turns, self.room(prompt, turns))
