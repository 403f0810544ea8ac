"""Real text after a compressed prompt: what perplexity and KL are measured on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.asking import compresses, nothing_compressed
from thrifty.evaluation.forcing import ForcedStep, MeasurementError, Tables, force
from thrifty.evaluation.quality import log_probabilities, passage
from thrifty.evaluation.tasks.task import Answered, Item, Record, Task, TaskTurn

if TYPE_CHECKING:
    from thrifty.arrays import Floats
    from thrifty.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Passages(Task):
    """Consecutive passages of the package's prose: `length` tokens are compressed, the next `scored` are predicted.

    The first token after the prompt is fed and not scored: the prefill predicts it.
    """

    metric: ClassVar[str] = "next-token accuracy"

    scored: Annotated[int, Field(ge=1)] = 128

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        room = self.length + self.scored + 2
        made = []
        for number in range(count):
            part = number + 1000 * seed
            cut = passage(tokenizer, room, self.length, self.scored, part=part, half=self.half)
            made.append(self.item(number, cut.prompt, (TaskTurn(cut.answer),), room))
        return made

    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        started = time.perf_counter()
        right, losses = [], []
        for target, logits in predictions(engine, item, cache):
            right.append(int(logits.argmax()) == target)
            losses.append(-float(log_probabilities(logits)[target]))
        details = {"nll": statistics.fmean(losses)}
        return self.record(item, statistics.fmean(right), time.perf_counter() - started, details)

    def scrambled(self, engine: Engine, own: Answered, others: Sequence[Answered]) -> float:
        """How often the tokens predicted for one passage stand at the same places of others; runs the passage again."""
        with closing(predictions(engine, own.item, [])) as steps:
            predicted = [int(logits.argmax()) for _, logits in steps]
        return statistics.fmean(
            token == target
            for other in others
            for token, target in zip(predicted, other.item.turns[0].tokens[1:], strict=True)
        )

    def record(self, item: Item, accuracy: float, seconds: float, details: dict[str, float]) -> Record:
        """The record of one run."""
        return Record(self.label, item.identity, accuracy, "", seconds, "", details)


def predictions(engine: Engine, item: Item, cache: Tables | None) -> Generator[tuple[int, Floats], None, None]:
    """(the token that came, logits [vocabulary] fp32 that predict it) for every scored token.

    Raises MeasurementError where the tables claim to compress and nothing compressed was read.
    """
    answer = item.turns[0].tokens
    with closing(force(engine, item.prompt, answer, cache, logits=True, inspect=(1,))) as steps:
        for step in steps:
            if step.index == 1:
                _check(step, item, cache)
            if step.index > 0:
                assert step.logits is not None, "the run asked for logits"
                yield answer[step.index], step.logits


def _check(step: ForcedStep, item: Item, cache: Tables | None) -> None:
    if compresses(cache) and step.evidence is not None and not step.evidence.compressed:
        raise MeasurementError(nothing_compressed(len(item.prompt), cache))
