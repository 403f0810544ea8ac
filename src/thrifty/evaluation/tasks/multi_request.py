"""Several questions over one shared context, each without the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks._haystack import NAMES, Haystack
from thrifty.evaluation.tasks._sessions import Question, on_their_own
from thrifty.evaluation.tasks.recall import asked, hidden
from thrifty.evaluation.tasks.task import Item


@dataclass(frozen=True, kw_only=True)
class MultiRequest(Answering):
    """SCBench's multi-request mode (2412.10319, §3): the cache is compressed once, then `requests` questions are asked,
    each on a fork of it that has seen none of the others.

    mode: aware puts the first question into what is compressed; the others come after it and are unknown in either.
    digits: of a number.
    """

    name: ClassVar[str] = "multi-request"
    metric: ClassVar[str] = "share of numbers found, over the requests"

    mode: Mode = "agnostic"
    requests: Annotated[int, Field(ge=2, le=len(NAMES))] = 4
    digits: Annotated[int, Field(ge=2, le=12)] = 4

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        haystack, frame = Haystack(tokenizer, self.half), Frame.of(tokenizer)
        return [self._item(haystack, frame, seed, number) for number in range(count)]

    def _item(self, haystack: Haystack, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        facts, context = hidden(haystack, frame, chance, self.requests, self.digits, self.length, self.mode)
        questions = [Question(*asked(name), (value,)) for name, value in facts]
        prompt, turns = on_their_own(frame, context, questions, self.mode)
        return self.item(number, prompt, turns, self.room(prompt, turns))
