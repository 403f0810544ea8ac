"""How much there is time for: items, tokens, rounds and models of a run of claims."""

from __future__ import annotations

from dataclasses import dataclass, replace

from thrifty.errors import RecipeError, nearest


@dataclass(frozen=True)
class Budget:
    """name: as `--minutes` has it. minutes: of the whole run; None: no bound. items: of recall and other tasks with
    short answers. tokens: scored ones of losses. answers: of tasks that generate in full. rounds: of timings. models:
    how many of a claim's models are measured, its first ones. factor: how long a claim takes, of what the smallest
    budget takes.
    """

    name: str
    minutes: float | None
    items: int
    tokens: int
    answers: int
    rounds: int
    models: int
    factor: float


SHORT = Budget("20", 20.0, items=32, tokens=2048, answers=16, rounds=3, models=1, factor=1.0)
MIDDLE = Budget("120", 120.0, items=100, tokens=10240, answers=48, rounds=5, models=2, factor=4.0)
OVERNIGHT = Budget("overnight", 720.0, items=200, tokens=14336, answers=120, rounds=7, models=3, factor=7.0)
RUNGS = (SHORT, MIDDLE, OVERNIGHT)


def parse(text: str | None) -> Budget:
    """A budget from `--minutes`: a number of minutes, or "overnight"; None: the smallest counts without a bound.

    A number takes the counts of the largest budget that is not longer (the smallest below 20). Raises RecipeError.
    """
    if text is None:
        return replace(SHORT, minutes=None)
    if text == OVERNIGHT.name:
        return OVERNIGHT
    try:
        minutes = float(text)
    except ValueError as error:
        raise RecipeError(
            f"--minutes {text[:40]}: use a number of minutes or 'overnight'. {nearest(text, [OVERNIGHT.name])}"
        ) from error
    if not 0 <= minutes < float("inf"):
        raise RecipeError(f"--minutes {text}: use 0 or more minutes, or 'overnight'")
    fitting = [rung for rung in RUNGS if rung.minutes is not None and rung.minutes <= minutes]
    return replace(fitting[-1] if fitting else SHORT, minutes=minutes)
