"""What need not run: recipes outside the bounds, and those that can only be worse than a gentler one, by their
predictions alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from thrifty.frontier.candidates import BASE, Candidate
from thrifty.frontier.measurement import Prediction

if TYPE_CHECKING:
    from thrifty.frontier.question import Question

WEIGHTS, CACHE = "weights", "cache"
"""What of a recipe takes away and saves nothing."""


@dataclass(frozen=True)
class Bounds:
    """The question's bounds over what is predicted, by key. wanted: keys of candidates that run although they save
    nothing; None: all do.
    """

    question: Question
    predictions: Mapping[str, Prediction]
    wanted: Set[str] | None

    def fits(self, prediction: Prediction) -> bool:
        """Whether the bytes are within the budget."""
        return prediction.need.peak <= self.question.memory

    def quick(self, prediction: Prediction) -> bool:
        """Whether the roofline allows the latency."""
        return self.question.latency is None or prediction.seconds <= self.question.latency

    def pointless(self, prediction: Prediction) -> str | None:
        """Which stage takes something away and saves nothing for sure, see `needless`; None where none does, and of
        candidates that were wanted.
        """
        if self.wanted is None or prediction.candidate.key in self.wanted:
            return None
        return needless(prediction, self.predictions)

    def dropped(self, servable: Iterable[Prediction]) -> dict[str, int]:
        """How many do not run, by the reason: memory, latency, weights or a cache that save nothing."""
        known = list(servable)
        fitting = [prediction for prediction in known if self.fits(prediction)]
        quick = [prediction for prediction in fitting if self.quick(prediction)]
        reasons = [self.pointless(prediction) for prediction in quick]
        return {
            "memory": len(known) - len(fitting),
            "latency": len(fitting) - len(quick),
            "weights": reasons.count(WEIGHTS),
            "cache": reasons.count(CACHE),
        }


def needless(prediction: Prediction, predictions: Mapping[str, Prediction]) -> str | None:
    """Which stage saves nothing for sure: WEIGHTS that are rounded again and take as much as those of the checkpoint, a
    CACHE that may keep everything (`fastgen`: what it keeps is an outcome, so all of it must be reserved) and so takes
    neither a byte nor a moment of a step less than the full one with the same weights; None where all do.
    """
    recipe = prediction.candidate.recipe
    if recipe.weights and prediction.need.weights >= predictions[BASE.key].need.weights:
        return WEIGHTS
    if not recipe.cache:
        return None
    full = predictions.get(Candidate(replace(recipe, name="", cache=[]), prediction.candidate.grid).key)
    if full is None or prediction.need.peak < full.need.peak or prediction.seconds < full.seconds:
        return None
    return CACHE
