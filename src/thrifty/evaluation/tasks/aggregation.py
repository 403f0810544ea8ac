"""Aggregation: which words come most often in a long list."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.errors import PromptError
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks.task import Item, Turn

TEXT = (
    "apple river candle window garden silver bridge forest pencil rabbit copper island basket dragon mirror pepper "
    "anchor violin tunnel button castle feather hammer jacket kettle ladder magnet needle orange pillow rocket saddle "
    "tiger umbrella valley wagon yellow zebra barrel camera desert engine falcon guitar helmet iron jungle lemon"
)
WORDS = tuple(TEXT.split())
QUESTION = "Which word appears most often in the list above?"
QUESTION_MANY = "Which {count} words appear most often in the list above?"
LEAD = "The most frequent word is"
LEAD_MANY = "The most frequent words are"


@dataclass(frozen=True, kw_only=True)
class Aggregation(Answering):
    """Common-words extraction of RULER (2404.06654, §3.3): `common` words make up `share` of a list, evenly.

    The rest are the other words in turn. mode: see `Mode`. Score: the share of the common words that are named.
    """

    name: ClassVar[str] = "aggregation"
    metric: ClassVar[str] = "share of the most frequent words named"

    mode: Mode = "agnostic"
    common: Annotated[int, Field(ge=1, le=8)] = 1
    share: Annotated[float, Field(gt=0, lt=1)] = 0.4

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        frame = Frame.of(tokenizer)
        return [self._item(frame, seed, number) for number in range(count)]

    def _item(self, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        words = chance.sample(WORDS, len(WORDS))
        common, rest = words[: self.common], words[self.common :]
        many = self.common > 1
        question = QUESTION_MANY.format(count=self.common) if many else QUESTION
        lead = LEAD_MANY if many else LEAD
        around = len(frame.before) + (len(frame.tokens(question)) if self.mode == "aware" else 0)
        context = self._list(frame, chance, common, rest, self.length - around)
        prompt, fed = frame.first(context, question, lead, self.mode)
        turns = (Turn(fed, tuple(common)),)
        return self.item(number, prompt, turns, self.room(prompt, turns))

    def _list(self, frame: Frame, chance: random.Random, common: list[str], rest: list[str], room: int) -> str:
        """As many words as the room holds, in random order."""
        size = max(len(frame.tokens(" " + word)) for word in WORDS) + 1  # and a comma
        total = (room - 1) // size
        often = round(total * self.share / len(common))
        others = total - often * len(common)
        if often <= -(-others // len(rest)):
            raise PromptError(
                f"a list of {max(0, total)} words is too short for a most frequent one; use a larger --length"
            )
        words = [word for word in common for _ in range(often)]
        words += [rest[place % len(rest)] for place in range(others)]
        chance.shuffle(words)
        return ", ".join(words) + "."
