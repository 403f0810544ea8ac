"""What a study found, as one JSON-ready document, and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thrifty.evaluation.studies.harness.controls import OTHERWISE, ControlOutcome, outcomes
from thrifty.evaluation.studies.harness.figures import UNTOLD, CellFigures, Figures, reading
from thrifty.evaluation.studies.harness.findings import outcome
from thrifty.evaluation.studies.harness.grid import Cell, Grid
from thrifty.evaluation.studies.harness.running import Run
from thrifty.evaluation.studies.harness.serving import ServedRate
from thrifty.evaluation.studies.harness.study import Study


def document(study: Study, run: Run, figures: Figures) -> dict[str, Any]:
    """cells: the grid, the uncompressed one first. controls: how they came out; sound: whether none came out otherwise
    than it must. findings: those of the papers, each with what the grid shows and a verdict. told: what was found, in
    sentences. A served rate's `bytes` are those of the weights and of all caches of its batch.
    """
    cells = {cell.label: figures.of(cell) for cell in run.grid.scored}
    controls = outcomes(run.grid, figures, run.skipped)
    return {
        "title": study.title,
        "papers": list(study.papers),
        "departs": list(study.departs),
        "off_grid": study.off_grid,
        "items_asked": run.asked,
        "cells": [_cell(own, run) for own in cells.values()],
        "controls": [control.as_dict() for control in controls],
        "sound": not any(control.outcome == OTHERWISE for control in controls),
        "skipped": [{"cell": label, "reason": reason} for label, reason in run.skipped.items()],
        "findings": [outcome(finding, run.grid, figures).as_dict() for finding in study.findings],
        "told": told(run.grid, list(cells.values()), controls, run),
    }


def told(grid: Grid, cells: Sequence[CellFigures], controls: Sequence[ControlOutcome], run: Run) -> list[str]:
    """The findings in sentences: controls that void them, weights alone, the cache alone, both together, serving."""
    wrong = [control.name for control in controls if control.outcome == OTHERWISE]
    sentences = [f"Not to be believed: {', '.join(wrong)} came out otherwise than it must."] if wrong else []
    base = grid.baseline
    alone = [own for own in cells if own.cell.cache == base.cache and own.cell.weights != base.weights]
    caches = [own for own in cells if own.cell.weights == base.weights and own.cell.cache != base.cache]
    for what, some in (("Weights alone", alone), ("The cache alone", caches)):
        known = [_against(own, own.cell.weights.name if some is alone else own.cell.cache.name) for own in some]
        if any(known):
            sentences.append(f"{what}: {'; '.join(filter(None, known))}.")
    sentences += _losses([*alone, *caches])
    together = [own for own in cells if own.beyond is not None]
    if together:
        sentences.append(_together(together))
    served = _served(base, [own.cell for own in cells], run)
    return [*sentences, *([served] if served else [])]


def _cell(own: CellFigures, run: Run) -> dict[str, Any]:
    weights = run.weights_bytes(own.cell) or 0
    served = [rate.as_dict() | {"void": rate.void, "bytes": weights + rate.cache_bytes} for rate in run.rates(own.cell)]
    return own.as_dict() | {
        "weights_bytes": run.weights_bytes(own.cell),
        "cache_bytes_of_a_sequence": run.cache_bytes(own.cell),
        "served": served,
    }


def points(value: float) -> str:
    """A difference of scores between 0 and 1, in points."""
    return f"{100 * value:+.1f}"


def _against(own: CellFigures, name: str) -> str:
    """A cell's mean difference from the baseline; empty where there is none yet."""
    if own.difference is None or own.tells is None:
        return ""
    interval = own.difference
    said = f"{name} {points(interval.value)} points ({points(interval.low)} to {points(interval.high)}"
    word = reading(interval)
    return f"{said}: {word}" + (f" of {100 * own.tells:.1f})" if word == UNTOLD else ")")


def _losses(cells: Sequence[CellFigures]) -> list[str]:
    """What weights and caches alone add to the loss of a token, which a few items tell finer than scores do; a sentence
    a task that has one.
    """
    by_task: dict[str, list[str]] = {}
    for own in cells:
        for name, figures in own.tasks.items():
            if figures.excess is not None:
                excess = figures.excess
                said = f"{own.cell.label} {excess.value:+.4f} ({excess.low:+.4f} to {excess.high:+.4f})"
                by_task.setdefault(name, []).append(said)
    return [f"Loss a token at {name}, nats more: {'; '.join(said)}." for name, said in by_task.items()]


def _together(cells: Sequence[CellFigures]) -> str:
    """Whether losses add up."""
    more = [own.cell.label for own in cells if own.beyond is not None and own.beyond.high < 0]
    less = [own.cell.label for own in cells if own.beyond is not None and own.beyond.low > 0]
    if not more and not less:
        return f"Together: in none of {len(cells)} cells do weights and cache lose more, or less, than both alone."
    said = [f"more than both alone in {', '.join(more)}"] if more else []
    said += [f"less than both alone in {', '.join(less)}"] if less else []
    return f"Together weights and cache lose {' and '.join(said)}, of {len(cells)} cells."


def _served(base: Cell, cells: Sequence[Cell], run: Run) -> str:
    """The fastest cell at every batch, by undisturbed rates; why there is none."""
    of_base = {rate.batch: rate for rate in run.rates(base)}
    others = {cell.label: {rate.batch: rate for rate in run.rates(cell)} for cell in cells if cell != base}
    said, void = [], False
    for batch, reference in of_base.items():
        rivals = {label: rates[batch] for label, rates in others.items() if batch in rates}
        void |= any(rate.void for rate in (reference, *rivals.values()))
        said += [] if void or not rivals else [_fastest(batch, reference, rivals)]
    if void:
        return "Served: other work disturbed the rates, which decide nothing."
    return f"Served: {'; '.join(said)}." if said else ""


def _fastest(batch: int, base: ServedRate, rivals: dict[str, ServedRate]) -> str:
    label, rate = max(rivals.items(), key=lambda item: item[1].rate)
    times = rate.rate / base.rate
    return f"at batch {batch} the fastest is {label}, {times:.2f} × the uncompressed {base.rate:.0f} tokens/s"
