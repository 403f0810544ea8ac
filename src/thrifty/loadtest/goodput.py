"""Goodput: the rate of requests that keep every objective, as vLLM counts it (DistServe, arXiv:2401.09670)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from thrifty.errors import nearest
from thrifty.loadtest.errors import LoadError
from thrifty.loadtest.outcome import Outcome

OBJECTIVES = ("ttft", "tpot", "e2el")


def parse_objectives(texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds by name from "ttft:2000 tpot:60": ttft, tpot or e2el. Raises LoadError naming the part."""
    objectives: dict[str, float] = {}
    for part in " ".join(texts).replace(",", " ").split():
        name, _, value = part.partition(":")
        if name not in OBJECTIVES:
            raise LoadError(f"{name!r} is no objective; use {', '.join(OBJECTIVES)}. {nearest(name, OBJECTIVES)}")
        try:
            objectives[name] = float(value)
        except ValueError as error:
            raise LoadError(f"{part!r} has no milliseconds; write e.g. {name}:2000") from error
        if not objectives[name] >= 0:
            raise LoadError(f"{part!r} is less than 0; give milliseconds")
    return objectives


def is_good(outcome: Outcome, objectives: Mapping[str, float]) -> bool:
    """Whether a request succeeded and kept all objectives. An answer of one token has a tpot of 0."""
    seconds = {"ttft": outcome.ttft, "tpot": outcome.tpot, "e2el": outcome.latency}
    return outcome.success and all(1e3 * seconds[name] <= most for name, most in objectives.items())


def good(outcomes: Iterable[Outcome], objectives: Mapping[str, float]) -> int:
    """How many did."""
    return sum(is_good(outcome, objectives) for outcome in outcomes)
