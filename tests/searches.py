"""A small search on a tiny random model."""

from __future__ import annotations

from typing import Any

from thrifty.evaluation.roofline.machine import Machine
from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.fit import Fit
from thrifty.frontier.question import Question
from thrifty.frontier.state import SearchState
from thrifty.models import Model
from thrifty.recipe import Recipe

MACHINE = Machine("this", 2e10, {"int8": 3e11, "bf16": 9e10, "fp32": 6e10}, 32 * 10**9)
LOOSE = 10**9
CONTEXT = 2048
KIVI = {"technique": "kivi", "bits": 4}
RTN = {"technique": "rtn", "bits": 4, "group": 128}


def candidates() -> list[Candidate]:
    """Three caches with the weights as shipped, two with rounded weights, two off the grid."""
    return [
        Candidate(Recipe(), Grid.SHIPPED),
        Candidate(Recipe(cache=[KIVI]), Grid.SHIPPED),
        Candidate(Recipe(cache=[{"technique": "snapkv", "capacity": 128}, KIVI]), Grid.SHIPPED),
        Candidate(Recipe(weights=[RTN]), Grid.ON),
        Candidate(Recipe(weights=[RTN], cache=[KIVI]), Grid.ON),
        Candidate(Recipe(), Grid.OFF),
        Candidate(Recipe(weights=[RTN]), Grid.OFF),
    ]


def fitted(
    model: Model, memory: int, chosen: list[Candidate] | None = None, state: SearchState | None = None, **changes: Any
) -> Fit:
    """A search over `chosen`, ready to run. changes: of the question."""
    more: dict[str, Any] = {"items": 2, "tasks": ("recall",)} | changes
    question = Question(
        model, memory, CONTEXT, prefix=320, scored=24, threads=1, candidates=chosen or candidates(), **more
    )
    return Fit(question, state=state)
