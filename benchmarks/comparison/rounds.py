"""The order of a run: screening, divergence, then alternating rounds of the winners."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.figures import PREFILL, SCREENING, Figure, Sample, winners
from benchmarks.comparison.quiet import Disturbance, listening
from benchmarks.comparison.session import Session
from benchmarks.comparison.variants import THRIFTY, Cell, Variant

from thrifty.evaluation.measuring.noise import LIMIT

SCREENING_SHARE = 0.45  # of the time; what is not screened by then does not take part
LATEST_SCREENING = 0.6  # of the time, after which nothing is screened
SCREENED_QUICKLY = 2048  # the largest context that a quick run screens; beyond it the winners here go on

Listening = Callable[[], AbstractContextManager[Disturbance]]


class TooNoisy(SystemExit):
    """Other processes disturbed more rounds than a run may lose."""


@dataclass(frozen=True)
class Plan:
    """What a run does. rounds: of every cell; long_rounds: of cells beyond `SCREENED_QUICKLY`. voids: rounds that
    may be lost before it gives up. allow_noise: count disturbed rounds.
    """

    field: Sequence[Variant]
    cells: Sequence[Cell]
    figures: Sequence[Figure]
    rounds: int
    long_rounds: int
    voids: int
    allow_noise: bool = False
    quick: bool = False

    def goal(self, cell: Cell) -> int:
        """Rounds of a cell."""
        return self.long_rounds if cell.context > SCREENED_QUICKLY else self.rounds


@dataclass(frozen=True)
class Entry:
    """A variant that takes part in a cell's rounds. reuse: only its decode rate counts there."""

    variant: Variant
    reuse: bool


def screen(session: Session, plan: Plan, save: Callable[[], None]) -> None:
    """One sample of every variant in every cell, each variant in a fresh process, contexts ascending: so the peak
    memory of a cell is that of the cell. A quick run spares Thrifty's, which are not chosen here.
    """
    deadline, end = session.left * (1 - SCREENING_SHARE), session.left * (1 - LATEST_SCREENING)
    met: set[str] = set()
    for variant in plan.field:
        spare = variant.engine in met  # every engine has at least its first variant screened
        met.add(variant.engine)
        if variant.key in session.state.screened or (plan.quick and variant.engine == THRIFTY):
            continue
        if spare and session.left < deadline:
            session.note(f"{variant.key}: not screened, the time for that is over")
            continue
        _screen_one(session, plan, variant, end)
        session.release(variant)
        session.state.screened.append(variant.key)
        save()


def _screen_one(session: Session, plan: Plan, variant: Variant, end: float) -> None:
    for cell in plan.cells:
        if session.left < end:
            session.note(f"{variant.key} @{cell}: not screened, the rest of the time is for rounds")
            return
        if not variant.measured_in(cell) or (plan.quick and cell.context > SCREENED_QUICKLY):
            continue
        sample = session.measure(variant, cell, SCREENING)
        if sample is None:
            continue
        session.state.samples.append(sample)
        session.note(f"screening {_line(sample)}")
        if cell.batch > 1:
            session.release(variant)  # a batch's peak must not stand for the contexts after it


def entries(plan: Plan, samples: Sequence[Sample], cell: Cell) -> list[Entry]:
    """Who takes part in a cell's rounds, in the order of the field."""
    chosen: dict[str, bool] = {}
    for figure in plan.figures:
        if figure.cell == cell:
            for variant in winners(figure, plan.field, samples):
                chosen[variant.key] = chosen.get(variant.key, False) or figure.metric == PREFILL
    reusing = {key for key, prefill in chosen.items() if not prefill}
    return [
        Entry(variant, variant.key in reusing and cell.batch == 1) for variant in plan.field if variant.key in chosen
    ]


def diverge(session: Session, plan: Plan, reference: Path, save: Callable[[], None], reserve: float = 0.0) -> None:
    """The KL divergence of everything that takes part in rounds and has none yet. reserve: seconds that are left
    for what comes after.
    """
    taking_part = {e.variant.key for cell in plan.cells for e in entries(plan, session.state.samples, cell)}
    for variant in plan.field:
        known = variant.key in session.state.kl or f"kl of {variant.key}" in session.state.errors
        if variant.key in taking_part and not known and session.left > reserve:
            session.divergence(variant, reference)
            if variant.key in session.state.kl:
                session.note(f"KL {variant.key}: {session.state.kl[variant.key]:.4f}")
            save()


def run_rounds(session: Session, plan: Plan, save: Callable[[], None], listen: Listening = listening) -> None:
    """Every cell once a round, contexts ascending, the order of the engines turned round every time."""
    lasted: dict[Cell, float] = {}
    for number in range(1, max(plan.rounds, plan.long_rounds) + 1):
        for cell in plan.cells:
            if number > plan.goal(cell) or _done(session, cell) >= number:
                continue
            if session.left < 1.2 * lasted.get(cell, 1.0):
                session.note(f"round {number} @{cell}: left out, {max(0.0, session.left):.0f} s are left")
                continue
            begin = time.perf_counter()
            while not _round(session, plan, cell, number, listen) and session.left > lasted.get(cell, 1.0):
                save()
            lasted[cell] = max(lasted.get(cell, 0.0), time.perf_counter() - begin)
            save()


def _done(session: Session, cell: Cell) -> int:
    return max((s.round for s in session.state.samples if s.cell == cell), default=0)


def _round(session: Session, plan: Plan, cell: Cell, number: int, listen: Listening) -> bool:
    """One round of a cell; False where it was void."""
    taking_part = entries(plan, session.state.samples, cell)
    found = []
    with listen() as heard:
        for entry in taking_part if number % 2 else reversed(taking_part):
            sample = session.measure(entry.variant, cell, number, reuse=entry.reuse)
            if sample is not None:
                found.append(sample)
    if heard.void and not plan.allow_noise:
        session.state.voids += 1
        session.note(f"round {number} @{cell} is void: '{heard.worst}' took {heard.share:.1%} of a core")
        if session.state.voids > plan.voids:
            raise TooNoisy(
                f"{session.state.voids} rounds are void, more than --voids {plan.voids}: other processes take more "
                f"than {LIMIT:.0%} of the CPU, most of it '{heard.worst}'. Stop it and go on with --resume, "
                "or try things out with --allow-noise."
            )
        return False
    session.state.samples += found
    for sample in found:
        session.note(f"round {number} {_line(sample)}")
    return True


def _line(sample: Sample) -> str:
    prefill = "      -" if sample.prefill is None else f"{sample.prefill:7.0f}"
    where = f"{sample.variant} @{sample.cell}"
    return f"{where:46} prefill {prefill}  decode {sample.decode:7.1f} tok/s  {sample.peak_rss / 1e6:6.0f} MB"
