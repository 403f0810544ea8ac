"""What the controls of a run say: a run in which one comes out otherwise than it must is not to be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thrifty.evaluation.studies.harness.figures import Figures
from thrifty.evaluation.studies.harness.grid import Cell, Grid

AS_IT_MUST, TOO_FEW, OTHERWISE, NOT_RUN = "as it must", "too few items to tell", "otherwise", "not run"


@dataclass(frozen=True)
class ControlOutcome:
    """A control: what it must, how it came out (one of the four words above), and the figures in words."""

    name: str
    must: str
    outcome: str
    told: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


def outcomes(grid: Grid, figures: Figures) -> list[ControlOutcome]:
    """Of all controls, those that could not be run among them, each with the reason."""
    ran = [_outcome(cell, figures) for cell in grid.controls]
    missing = [ControlOutcome(control.name, control.must, NOT_RUN, reason) for control, reason in grid.missing]
    return ran + missing


def _outcome(cell: Cell, figures: Figures) -> ControlOutcome:
    control = cell.control
    assert control is not None, "only controls are asked"
    if control.must == "be equal":
        asked, same = figures.equal(cell)
        word = NOT_RUN if not asked else AS_IT_MUST if asked == same else OTHERWISE
        return ControlOutcome(control.name, control.must, word, f"{same} of {asked} answers are the baseline's")
    difference = figures.of(cell).difference
    if difference is None:
        return ControlOutcome(control.name, control.must, NOT_RUN, "its items were not reached")
    word = AS_IT_MUST if difference.high < 0 else OTHERWISE if difference.low > 0 else TOO_FEW
    told = f"{difference.value:+.3f} (95 % {difference.low:+.3f} to {difference.high:+.3f}) of the score"
    return ControlOutcome(control.name, control.must, word, told)
