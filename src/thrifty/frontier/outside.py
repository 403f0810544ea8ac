"""What a little more of the budget would bring: candidates that the bounds keep out."""

from __future__ import annotations

from collections.abc import Iterable

from thrifty.frontier.candidates import Candidate
from thrifty.frontier.gentleness import gentler
from thrifty.frontier.measurement import Prediction


def steps_up(excluded: Iterable[Prediction], best: Candidate, most: int) -> list[Candidate]:
    """The cheapest of those that the bounds exclude, at most so many, those that share weights together; without those
    to which the best one is gentler, which are no step up.
    """
    better = [prediction for prediction in excluded if not gentler(best, prediction.candidate)]
    better.sort(key=lambda prediction: (prediction.need.peak, prediction.seconds))
    cheapest = [prediction.candidate for prediction in better[:most]]
    return sorted(cheapest, key=lambda candidate: candidate.weights_key)
