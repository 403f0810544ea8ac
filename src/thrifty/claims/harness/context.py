"""What claims measure with: one model, its engine, and baselines that several claims share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from thrifty.api import open_engine
from thrifty.engine.request import Request
from thrifty.evaluation import quality
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.measuring import speed
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.text import held_out

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.forcing import Tables
    from thrifty.models.model import Model
    from thrifty.recipe import Recipe

Say = Callable[[str], None]


class Context:
    """A model under measurement. name: what reports call it. say: told what is going on.

    Closing it closes the engine and deletes the baselines.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        *,
        threads: int | None = None,
        native: bool | None = None,
        say: Say = lambda text: None,
    ) -> None:
        self.model, self.name, self.say = model, name, say
        self._options: dict[str, Any] = {"threads": threads, "native": native}
        self._baselines: dict[tuple[int, int, int], quality.Baseline] = {}

    @property
    def length(self) -> int:
        """Tokens that the model's context holds."""
        return self.model.config.context_length

    @cached_property
    def engine(self) -> Engine:
        """An engine of the model without a budget."""
        engine = self.fresh(self.model)
        speed.warm_up(engine)
        return engine

    def fresh(self, model: Model, recipe: Recipe | None = None, **options: Any) -> Engine:
        """Another engine, of this or another model under a recipe; the caller closes it."""
        return open_engine(model, recipe, prefix_tree=False, **self._options, **options)

    def baseline(self, prefix: int, scored: int, part: int = 0) -> quality.Baseline:
        """The uncompressed model on a passage; measured once."""
        key = (prefix, scored, part)
        if key not in self._baselines:
            self.say(f"baseline of {prefix} + {scored} tokens, part {part}")
            passage = quality.passage(self.model.require_tokenizer(), self.length, prefix, scored, part=part)
            self._baselines[key] = quality.Baseline.measure(self.engine, passage)
        return self._baselines[key]

    def quality(self, cache: Tables, prefix: int, scored: int, part: int = 0) -> quality.PassageRun:
        """A cache recipe against the baseline of the same passage."""
        baseline = self.baseline(prefix, scored, part)
        self.say(f"{', '.join(str(table['technique']) for table in cache)} on {prefix} + {scored} tokens, part {part}")
        return quality.measure(self.engine, baseline, cache, compresses=True)

    def baseline_nll(self, prefix: int, scored: int, part: int = 0) -> float:
        """Mean negative log-likelihood of the passage's scored tokens under the uncompressed model, nats."""
        baseline = self.baseline(prefix, scored, part)
        return mean_nll(baseline)

    def peak(self, cache: Tables, length: int, sequences: int) -> int:
        """Bytes of the ledger at their highest, weights included, while `sequences` prompts of `length` tokens are
        served together, to the last of a few tokens each.
        """
        self.say(f"memory of {sequences} × {length} tokens")
        engine = self.fresh(self.model, prefill_slice_ms=0)
        try:
            handles = []
            for part in range(sequences):
                tokens = held_out(self.model.require_tokenizer(), length + 1, part)
                # Nobody may end before all have begun. While others decode, a step does one layer or one chunk.
                steps = max(len(self.model.config.layers), length // 128) + 2
                answer = tokens[1:2] * (sequences * steps)
                handles.append(
                    engine.submit(Request(prompt=tokens[:length], forced=answer, cache=cache, share_prefix=False))
                )
            while any(handle.usage.generated_tokens == 0 for handle in handles):
                engine.step()
                if any(handle.finished for handle in handles):
                    raise MeasurementError("a sequence ended before the last one began: this is not a batch's peak")
            return engine.usage().peak
        finally:
            engine.close()

    def speed(self, cache: Tables, length: int, steps: int = 48) -> speed.Speed:
        """Decode speed and cache bytes after a prompt of `length` tokens."""
        self.say(f"speed at {length} tokens")
        return speed.measure(self.engine, length, cache, steps=steps)

    def close(self) -> None:
        """Give everything back."""
        for baseline in self._baselines.values():
            baseline.close()
        self._baselines.clear()
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def quality_of(run: quality.PassageRun) -> quality.Quality:
    """What a compressed run cost. Raises MeasurementError for a baseline, which is compared with nothing."""
    if run.quality is None:
        raise MeasurementError("a baseline's run has no quality: compare another run with it")
    return run.quality


def recovery_of(run: quality.PassageRun) -> Interval:
    """Next-token recovery. Raises MeasurementError where the uncompressed model is right nowhere."""
    recovery = quality_of(run).recovery
    if recovery is None:
        raise MeasurementError(
            "recovery is undefined: the uncompressed model predicts none of the scored tokens; use a model that can"
        )
    return recovery


def mean_nll(baseline: quality.Baseline) -> float:
    """Mean negative log-likelihood of a baseline's scored tokens, nats."""
    answer: Sequence[int] = baseline.passage.answer[1:]
    total = 0.0
    for target, row in zip(answer, baseline.rows(), strict=True):
        total -= float(quality.log_probabilities(row)[target])
    return total / len(answer)


def perplexity(nll: float) -> float:
    """e to the mean negative log-likelihood, for ever large instead of an overflow."""
    return math.exp(nll) if nll < 700 else math.inf
