"""Where the results of techniques go as they are made: nowhere but into the model, or to the disk as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from thrifty.arrays import Floats
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model, TensorReport


@dataclass(frozen=True)
class Result:
    """What takes the place of a part: a linear, or fp32 [width] of a norm. report: of the linear, None where nothing is
    told.
    """

    name: str
    value: PackedLinear | Floats
    report: TensorReport | None = None


LAYERS = "its layers"
"""What a phase that stands for all units of a technique is called."""


@dataclass(frozen=True)
class Phase:
    """How far a part of a technique's work is. technique: its name. what: the part, such as "training", or LAYERS.
    done, total: its steps. seconds_left: of the part, at the pace so far. kept: the steps that a run that is killed now
    need not take again.
    """

    technique: str
    what: str
    done: int
    total: int
    seconds_left: float
    kept: int = 0


class Stepped(Protocol):
    """What a step of a training says of itself: see `training.loop.loop.Progress`."""

    @property
    def step(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def seconds_left(self) -> float: ...

    @property
    def saved(self) -> int: ...


class Results:
    """The results of a recipe's techniques, each technique a stage. This one keeps nothing: all is in the model.

    folder: where a technique that trains keeps its state, to go on from after an interruption; None: nowhere.

    A unit is what a technique makes at a time: a linear, or a group of them. One that is kept need not be made again
    when the work is begun a second time.
    """

    folder: Path | None = None

    def restore(self, stage: int, model: Model) -> bool:
        """Bring the model to where a finished stage left it; False where that stage is still to be done."""
        return False

    def begin(self, stage: int, model: Model) -> None:
        """A stage begins, with the model as the stages before left it."""

    def of(self, unit: str) -> Sequence[Result] | None:
        """What the stage made of a unit before it was interrupted; None where the unit is still to be done."""
        return None

    def keep(self, unit: str, result: Result) -> Result:
        """The same result, which may lie somewhere else from now on."""
        return result

    def tell(self, phase: Phase) -> None:
        """A step was taken of a part of the work that no unit tells of."""

    def close(self, unit: str) -> None:
        """All results of a unit were kept."""

    def finish(self, stage: int, model: Model) -> None:
        """A stage is done, and the model is as it left it."""
