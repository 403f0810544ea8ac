"""Multiple choice by likelihood: which of four endings is the sentence's own."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from thrifty.errors import PromptError
from thrifty.evaluation.asking import likelihoods
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.tasks._haystack import Haystack
from thrifty.evaluation.tasks.task import Answered, Item, Record, Task, TaskTurn

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

ENDING = 6  # words of an ending


@dataclass(frozen=True, kw_only=True)
class EndingChoice(Task):
    """A cloze over the package's prose: the passage is compressed, then each ending of its next sentence is scored by
    its log-likelihood a character (HellaSwag's form, 1905.07830). The wrong endings are those of other sentences.
    """

    name: ClassVar[str] = "choice"
    metric: ClassVar[str] = "share of right choices"

    options: Annotated[int, Field(ge=2, le=16)] = 4

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        haystack = Haystack(tokenizer, self.half)
        return [self._item(tokenizer, haystack, seed, number) for number in range(count)]

    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        started = time.perf_counter()
        (turn,) = item.turns
        likely = likelihoods(engine, item.prompt, turn.tokens, turn.options, cache)
        endings: list[str] = item.material["endings"]
        scores = [likelihood.total / len(ending) for likelihood, ending in zip(likely, endings, strict=True)]
        chosen = max(range(len(scores)), key=scores.__getitem__)
        right = item.material["right"]
        return Record(
            task=self.label,
            item=item.identity,
            score=float(chosen == right),
            output=endings[chosen],
            seconds=time.perf_counter() - started,
            expected=endings[right],
            details={"log_likelihood_per_character": scores},
        )

    def scrambled(self, engine: Engine, own: Answered, others: Sequence[Answered]) -> float:
        """How often the place of the chosen ending is that of other items' right ones."""
        chosen = own.item.material["endings"].index(own.record.output)
        return statistics.fmean(chosen == other.item.material["right"] for other in others)

    def _item(self, tokenizer: Any, haystack: Haystack, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        own, *others = self._sentences(chance, haystack)
        opening, ending = _cut(haystack.sentences[own])
        endings = [ending, *(_cut(haystack.sentences[other])[1] for other in others)]
        order = chance.sample(range(len(endings)), len(endings))
        endings = [endings[place] for place in order]
        prompt = tuple(tokenizer.encode(self._passage(haystack, own)))
        lead = tuple(tokenizer.encode(" " + opening, add_bos=False))
        options = tuple(tuple(tokenizer.encode(" " + option, add_bos=False)) for option in endings)
        room = len(prompt) + len(lead) + max(len(option) for option in options) + 1
        turn = TaskTurn(lead, (ending,), options)
        return self.item(number, prompt, (turn,), room, {"endings": endings, "right": order.index(0)})

    def _sentences(self, chance: random.Random, haystack: Haystack) -> list[int]:
        """Places of the asked sentence and of those that lend the wrong endings."""
        long = [place for place, sentence in enumerate(haystack.sentences) if len(sentence.split()) >= 2 * ENDING]
        chosen = chance.sample(long, self.options)
        if len({_cut(haystack.sentences[place])[1] for place in chosen}) < len(chosen):
            return self._sentences(chance, haystack)
        return chosen

    def _passage(self, haystack: Haystack, before: int) -> str:
        """What stands before a sentence, as much as fits (the text's end stands before its beginning)."""
        body: list[str] = []
        room = self.length - 1  # a beginning-of-sequence token
        place = before - 1
        while haystack.size(" " + haystack.sentences[place]) <= room:
            room -= haystack.size(" " + haystack.sentences[place])
            body.insert(0, haystack.sentences[place])
            place -= 1
        if not body:
            raise PromptError(f"no sentence fits a context of {self.length} tokens; use a larger --length")
        return " ".join(body)


def _cut(sentence: str) -> tuple[str, str]:
    """A sentence without its last words, and these."""
    words = sentence.split()
    return " ".join(words[:-ENDING]), " ".join(words[-ENDING:])
