"""A model through a recipe's weight techniques into a folder: within bounded memory, resumable, whole or absent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from thrifty.errors import BudgetError, RecipeError, StorageError
from thrifty.models.compressed.layout import RECIPE, RUN, is_compressed
from thrifty.models.compressed.saving import write_model
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.storage.process import peak_resident, resident
from thrifty.version import VERSION
from thrifty.weights.applied import check_new
from thrifty.weights.calibration import CalibrationSet, default_calibration
from thrifty.weights.compressing import report as reports
from thrifty.weights.compressing.origin import Origin
from thrifty.weights.compressing.prediction import disk_bytes, steps
from thrifty.weights.compressing.stored_results import StoredResults
from thrifty.weights.compressing.workplace import Workplace
from thrifty.weights.results import Phase
from thrifty.weights.technique import Technique, prepare

Watch = Callable[[int, int], None]
"""Called with the steps that are done and those that there are: first before any, then after each."""


def compress(
    model: Model,
    recipe: Recipe,
    target: Path,
    *,
    source: str = "",
    calibration: CalibrationSet | None = None,
    force: bool = False,
    memory: int | None = None,
    watch: Watch | None = None,
    tell: Callable[[Phase], None] | None = None,
) -> dict[str, Any]:
    """Write a model with the weight techniques of a recipe into the folder `target`; the report that lies there.

    The model's layers are exchanged one at a time, and what is made goes to the disk at once: it is not to be used
    afterwards. source: what the model is called. force: replace a folder that is there. memory: bytes that the process
    may hold before each part of the work. watch, tell: see `Watch` and `Phase`. A run that was killed goes on where it
    was when it is begun again with the same model, recipe and calibration.

    Raises RecipeError for a recipe that does not fit the model, StorageError where the folder is there, or cannot be
    written, BudgetError for memory.
    """
    started, target = time.monotonic(), target.resolve()
    techniques: list[Technique] = recipe.techniques("weights")
    chosen = _calibration(model, techniques, calibration)
    place = Workplace(target)
    place.recover()
    _check(model, techniques, target, force)
    label = None if chosen is None else chosen.label
    identity, origin = _identity(model, recipe, label), Origin.of(model)
    applied = replace(recipe, weights=[*map(dict, model.applied), *recipe.weights], prompt=[], cache=[], decoding=[])
    with place.opened(identity):
        place.check_room(disk_bytes(model, techniques), str(target.name))
        results = StoredResults(place.path)
        before = _Bound(memory)
        try:
            with place.errors():
                results.watch(model, partial(_steps, techniques, results), watch)
                results.phases([technique.name for technique in techniques], tell)
                name = {"name": source or str(model.path or ""), "version": model.version}
                made = prepare(
                    model, techniques, calibration=chosen, in_place=True, before=before.check, results=results
                )
                told = reports.report(made, name, applied.weights, label, origin.errors(made, techniques))
                told[reports.RUN] = {
                    "seconds": round(time.monotonic() - started, 3),
                    "resumed": place.resumed,
                    "peak_process_bytes": peak_resident(),
                }
                _write(place.result(), made, recipe, applied, told)
                place.publish()
        finally:
            results.shut()
    return told


class _Bound:
    """What `--memory` allows. check: raises BudgetError where the process holds more."""

    def __init__(self, memory: int | None) -> None:
        self.memory = memory

    def check(self) -> None:
        if self.memory is None or (held := resident()) <= self.memory:
            return
        raise BudgetError(
            f"the process holds {held / 1e6:.0f} MB before the next part of the work, more than --memory "
            f"{self.memory / 1e6:.0f} MB. What is done is kept: the same command with more memory goes on from there."
        )


def _calibration(model: Model, techniques: Sequence[Technique], given: CalibrationSet | None) -> CalibrationSet | None:
    """What techniques see; None where none looks. Raises RecipeError for a text that nobody would look at."""
    if any(technique.needs_calibration for technique in techniques):
        return given or default_calibration(model)
    if given is not None:
        raise RecipeError("no technique of this recipe is calibrated: leave the calibration text out")
    return None


def _check(model: Model, techniques: Sequence[Technique], target: Path, force: bool) -> None:
    if not techniques:
        raise RecipeError(
            "the recipe has no [[weights]], so there is nothing to compress: add a table such as\n"
            '[[weights]]\ntechnique = "rtn"'
        )
    check_new(model, techniques)
    for technique in techniques:
        technique.check(model)
    if target.exists() and not target.is_dir():
        raise StorageError(f"{target} is a file; give a folder that is not there yet")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise StorageError(f"{target} is there and not empty: give another folder, or --force to replace it")
    if target.exists() and model.path is not None and target.resolve() in (model.path, *model.path.parents):
        raise StorageError(f"{target} holds the model that is being compressed: give another folder")
    if target.is_dir() and any(target.iterdir()) and not is_compressed(target):
        raise StorageError(
            f"{target} holds something else than a model of `thrifty compress`, and --force replaces nothing else: "
            "give another folder, or empty this one"
        )


def _identity(model: Model, recipe: Recipe, calibration: str | None) -> Mapping[str, Any]:
    """What earlier work must agree in to be gone on with."""
    return {
        "thrifty": VERSION,
        "version": model.version,
        "weights": recipe.weights,
        "calibration": calibration,
    }


def _steps(techniques: Sequence[Technique], results: StoredResults, first: int, model: Model) -> int:
    """Steps that are still to be done, from a stage on."""
    left = 0
    for stage, technique in enumerate(techniques):
        if stage >= first and not results.is_whole(stage):
            left += max(1, steps(model, technique) - results.units(stage))
    return left


def _write(folder: Path, model: Model, recipe: Recipe, applied: Recipe, report: Mapping[str, Any]) -> None:
    """applied: all weight techniques that the model has been through, those of a compressed source first."""
    write_model(folder, model, applied.weights, report)
    applied.save(folder / RECIPE)
    if recipe.prompt or recipe.cache or recipe.decoding:
        replace(recipe, weights=[]).save(folder / RUN)
