"""Which recipes do less than others, so that no measurement is needed to tell which of two keeps more of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thrifty.frontier.candidates import Candidate, Table
from thrifty.frontier.measurement import Prediction
from thrifty.frontier.space import BUDGETS

BITS = {"bits", "embedding_bits"}
"""Options of which a larger number keeps more of the model, and None leaves it as it is."""
KEEP = "keep"  # the share of a prompt that is kept, where no number of tokens is set; see `BUDGETS` for these
MORE_KEEPS = {"recovery", "threshold"}
"""Options of which a larger number keeps more: the attention that a head must recover, and how alike neighbours must be
before they are merged."""
LESS_KEEPS = {"group", "symmetric"}
"""Options of which a smaller number keeps more: what shares a scale, and whether there is no minimum."""


def gentler(candidate: Candidate, other: Candidate) -> bool:
    """Whether `candidate` does nothing that `other` does not do at least as hard: every technique of its stages stands
    in those of `other`, in the same order, with options that take as much or more away. So of recipes of one grid it
    cannot lose more. False for equal ones, and where an option says nothing of how hard a technique is.
    """
    if candidate.key == other.key or candidate.servable != other.servable:
        return False
    return all(_embeds(candidate.stages[stage], other.stages[stage]) for stage in ("weights", "cache"))


def deciding(predictions: Sequence[Prediction], latency: float | None = None) -> set[str]:
    """The keys of those among predictions within the bounds that could be the best: to all others there is a gentler
    one. latency: seconds; where there is such a bound, a gentler one counts only if it is as fast by its bytes, or has
    half of the time to spare.
    """
    kept = set()
    for prediction in predictions:
        rivals = (other for other in predictions if gentler(other.candidate, prediction.candidate))
        if not any(_surely_quick(other, prediction, latency) for other in rivals):
            kept.add(prediction.candidate.key)
    return kept


def _surely_quick(rival: Prediction, than: Prediction, latency: float | None) -> bool:
    return latency is None or rival.seconds <= than.seconds or rival.seconds <= latency / 2


def _embeds(tables: Sequence[Table], others: Iterable[Table]) -> bool:
    """Whether every table has its harsher one among `others`, in the same order."""
    rest = iter(others)
    return all(any(_softer(table, other) for other in rest) for table in tables)


def _softer(table: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if table["technique"] != other["technique"]:
        return False
    tokens = BUDGETS.get(table["technique"], KEEP)
    return all(_keeps(name, value, other.get(name), tokens) for name, value in table.items())


def _keeps(option: str, value: Any, other: Any, tokens: str) -> bool:
    """Whether an option's value keeps as much as another one, or more. tokens: the option that counts what is kept of
    the prompt.
    """
    if value == other:
        return True
    if option == "skip":
        return set(other) <= set(value)
    if option in BITS and value is None:
        return True
    if option in BITS or option in MORE_KEEPS or option in (tokens, KEEP):
        return _numbers(value, other) and bool(value >= other)
    return option in LESS_KEEPS and _numbers(value, other) and bool(value <= other)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)
