"""Long lists of words, of which the most frequent are asked for."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.errors import PromptError
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks.task import Item, TaskTurn

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
class Listing(Answering):
    """mode: see `Mode`. common: how many of the most frequent words are asked for. Score: the share of them that is
    named.
    """

    metric: ClassVar[str] = "share of the most frequent words named"

    mode: Mode = "agnostic"
    common: Annotated[int, Field(ge=1, le=8)] = 1

    @abstractmethod
    def counts(self, total: int) -> list[int]:
        """How often the words of a list of `total` come, the asked ones first. None may come as often as one of
        those.
        """

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        frame = Frame.of(tokenizer)
        return [self._item(frame, seed, number) for number in range(count)]

    def _item(self, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        words = chance.sample(WORDS, len(WORDS))
        many = self.common > 1
        question = QUESTION_MANY.format(count=self.common) if many else QUESTION
        lead = LEAD_MANY if many else LEAD
        around = len(frame.before) + (len(frame.tokens(question)) if self.mode == "aware" else 0)
        counts = self._checked(self._total(frame, self.length - around))
        listed = [word for word, often in zip(words, counts, strict=False) for _ in range(often)]
        chance.shuffle(listed)
        prompt, fed = frame.first(", ".join(listed) + ".", question, lead, self.mode)
        turns = (TaskTurn(fed, tuple(words[: self.common])),)
        return self.item(number, prompt, turns, self.room(prompt, turns))

    def _total(self, frame: Frame, room: int) -> int:
        """How many words so many tokens hold, whichever they are."""
        size = max(len(frame.tokens(" " + word)) for word in WORDS) + 1  # and a comma
        return max(0, (room - 1) // size)

    def _checked(self, total: int) -> list[int]:
        counts = self.counts(total)
        if min(counts[: self.common]) <= max(counts[self.common :]):
            raise PromptError(f"a list of {total} words is too short for a most frequent one; use a larger --length")
        return counts
