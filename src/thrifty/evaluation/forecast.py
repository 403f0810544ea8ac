"""What an evaluation still has to run, and about how long that takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.evaluation.measuring.pace import COMPRESSING, Times, short_run
from thrifty.evaluation.roofline.machine import Machine
from thrifty.evaluation.roofline.sizes import of_model

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.tasks.task import Effort

TYPICAL = Machine("typical", 2e10, {"int8": 4e11, "bf16": 2e11, "fp32": 1e11}, 1 << 34)
"""How a processor's rates relate to one another: a forecast takes no more of a machine, and its pace is measured."""


@dataclass(frozen=True)
class Run:
    """One item on one side. compresses: whether that side has a recipe."""

    effort: Effort
    compresses: bool


@dataclass(frozen=True)
class Expected:
    """seconds: about how long it takes. runs: of items, on both sides. prompts, steps: tokens that are prefilled, and
    the most that follow them.
    """

    seconds: float
    runs: int
    prompts: int
    steps: int


def times(engine: Engine) -> Times:
    """How long runs of the engine's model take, from a short one."""
    return Times(short_run(engine), of_model(engine.model), TYPICAL)


def expected(model: Times, left: Iterable[Run]) -> Expected:
    """What is left to run, and the seconds of it. Answers are taken to be as long as they may be."""
    runs = list(left)
    seconds = sum(_seconds(model, run) for run in runs)
    prompts = sum(run.effort.prefills * run.effort.prompt for run in runs)
    return Expected(seconds, len(runs), prompts, sum(run.effort.steps for run in runs))


def _seconds(model: Times, run: Run) -> float:
    effort = run.effort
    seconds = effort.prefills * model.prefill(effort.prompt) + effort.steps * model.step(model.held(effort.prompt))
    return COMPRESSING * seconds if run.compresses else seconds
