"""What a budget has time for: which claim on which model, in which order, and about how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thrifty import claims
from thrifty.claims.harness.budget import Budget

COST: Mapping[str, float] = {
    "recall-2m": 0.1,
    "smollm2-135m": 1.0,
    "qwen2.5-coder-0.5b": 4.0,
    "qwen2.5-coder-1.5b": 12.0,
}
"""Time of a token, of smollm2-135m's; a model that is not here counts as 1 until it was measured."""

MOST, LEAST = 8.0, 0.25  # how far a measured pace may correct the plan


@dataclass(frozen=True)
class Step:
    """One claim on one model. minutes: what it takes, by the claim's own estimate."""

    technique: str
    model: str
    minutes: float


def plan(names: Sequence[str], budget: Budget, models: Sequence[str] = ()) -> list[Step]:
    """The steps in their order: all claims on their first model, then all on their second. models: these instead of
    each claim's own.
    """
    known = {name: claims.load(name) for name in names}
    steps = []
    for rank in range(len(models) or budget.models):
        for name, claim in known.items():
            chosen = tuple(models) or claim.models
            if rank < len(chosen):
                weight = COST.get(chosen[rank], 1.0) / COST.get(claim.models[0], 1.0)
                steps.append(Step(name, chosen[rank], claim.minutes * budget.factor * weight))
    return steps


def told(steps: Sequence[Step], budget: Budget, seeds: int) -> str:
    """The plan in one sentence, before it starts."""
    models = list(dict.fromkeys(step.model for step in steps))
    total = seeds * sum(step.minutes for step in steps)
    bound = "" if budget.minutes is None else f" of {budget.minutes:g} there are; what does not fit is left out"
    return (
        f"{len({step.technique for step in steps})} claims on {', '.join(models)}: about {total:.0f} minutes on two "
        f"quiet cores{bound}. {budget.items} short answers, {budget.answers} long ones and {budget.tokens} scored "
        "tokens a figure"
    )


class Pace:
    """How the minutes that steps took compare with the plan's."""

    def __init__(self) -> None:
        self._planned = self._taken = 0.0

    def add(self, planned: float, taken: float) -> None:
        """One more step."""
        self._planned += planned
        self._taken += taken

    def expected(self, minutes: float) -> float:
        """What so many planned minutes will take, by what the steps before took."""
        if self._planned <= 0:
            return minutes
        return minutes * min(MOST, max(LEAST, self._taken / self._planned))
