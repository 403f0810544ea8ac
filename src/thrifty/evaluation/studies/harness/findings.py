"""What papers found beside what a grid shows, with a verdict by its intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.studies.harness.figures import Figures
from thrifty.evaluation.studies.harness.grid import Cell, Grid
from thrifty.evaluation.studies.harness.methods import REPAIRED
from thrifty.evaluation.studies.harness.study import Finding

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold here", "inconclusive", "not in this grid"


@dataclass(frozen=True)
class Outcome:
    """paper: where it stands. says: what the paper found. here: what this grid shows, in words. verdict: one of the
    four words above.
    """

    paper: str
    says: str
    here: str
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def outcome(finding: Finding, grid: Grid, figures: Figures) -> Outcome:
    """The finding beside what the grid shows."""
    return Outcome(finding.paper, finding.says, *finding.judge(grid, figures))


def keeps(bits: int, least: float, methods: Sequence[str] = ()) -> Callable[[Grid, Figures], tuple[str, str]]:
    """That each cell of so many bits keeps at least that share of the uncompressed score. methods: these alone."""
    return lambda grid, figures: _each(_cells(grid, bits, methods), figures, Bound(least, at_least=True))


def loses(bits: int, most: float, methods: Sequence[str] = ()) -> Callable[[Grid, Figures], tuple[str, str]]:
    """That each cell of so many bits keeps at most that share."""
    return lambda grid, figures: _each(_cells(grid, bits, methods), figures, Bound(most, at_least=False))


def repair_fails(grid: Grid, figures: Figures) -> tuple[str, str]:
    """That no repaired cell scores higher than the same one before the repair, items paired."""
    pairs = [(own, before) for own in _alone(grid) if (before := _before(grid, own)) is not None]
    shown = [(own, difference) for own, before in pairs if (difference := figures.between(own, before)) is not None]
    if not shown:
        return "no repaired cell has enough items", ABSENT
    here = "; ".join(f"{own.weights.name} {_points(difference)} points" for own, difference in shown)
    words = [HOLDS if own.high <= 0 else FAILS if own.low > 0 else OPEN for _, own in shown]
    return here, _worst(words)


def _each(cells: Sequence[Cell], figures: Figures, bound: Bound) -> tuple[str, str]:
    base = figures.baseline_mean()
    shown: list[tuple[Cell, Interval]] = []
    for cell in cells:
        difference = figures.of(cell).difference
        if base and difference is not None:
            ends = (1 + value / base for value in (difference.value, difference.low, difference.high))
            shown.append((cell, Interval(*ends)))
    if not shown:
        return "no such cell has enough items", ABSENT
    here = "; ".join(
        f"{own.weights.name} keeps {100 * kept.value:.1f} % ({100 * kept.low:.1f} to {100 * kept.high:.1f})"
        for own, kept in shown
    )
    return here, _worst([bound.word(kept) for _, kept in shown])


@dataclass(frozen=True)
class Bound:
    """A share of the uncompressed score, from below or from above."""

    share: float
    at_least: bool

    def word(self, kept: Interval) -> str:
        """The verdict of an interval: it decides where all of it lies on one side."""
        below, above = kept.high < self.share, kept.low >= self.share
        if not below and not above:
            return OPEN
        return HOLDS if above == self.at_least else FAILS


def _alone(grid: Grid) -> list[Cell]:
    """Cells of compressed weights with the cache as it is."""
    base = grid.baseline
    return [cell for cell in grid.scored if cell.cache == base.cache and cell.weights.tables]


def _cells(grid: Grid, bits: int, methods: Sequence[str]) -> list[Cell]:
    found = []
    for cell in _alone(grid):
        tables = cell.weights.tables
        named = not methods or tables[0].get("technique") in methods
        if len(tables) == 1 and tables[0].get("bits") == bits and named:
            found.append(cell)
    return found


def _before(grid: Grid, repaired: Cell) -> Cell | None:
    if not repaired.weights.name.endswith(REPAIRED):
        return None
    tables = repaired.weights.tables[:-1]
    return next((cell for cell in _alone(grid) if cell.weights.tables == tables), None)


def _worst(words: Sequence[str]) -> str:
    """One that fails decides; one that is open keeps the rest from holding."""
    return FAILS if FAILS in words else OPEN if OPEN in words else HOLDS


def _points(own: Interval) -> str:
    return f"{100 * own.value:+.1f} ({100 * own.low:+.1f} to {100 * own.high:+.1f})"
