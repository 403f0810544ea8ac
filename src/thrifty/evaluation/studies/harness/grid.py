"""The cells of a study: every format of weights with every one of the cache, the controls, a recipe of one's own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thrifty import registry
from thrifty.errors import RecipeError, ThriftyError, nearest
from thrifty.evaluation.studies.harness.study import Control, Format, Study
from thrifty.recipe import Recipe


class GridError(ThriftyError):
    """A part of a study's grid is unknown."""


@dataclass(frozen=True)
class Cell:
    """Weights and cache that are scored together. control: what it is a control of, None in the grid itself."""

    weights: Format
    cache: Format
    control: Control | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.control.name if self.control else f"{self.weights.name} × {self.cache.name}"

    @property
    def plain(self) -> bool:
        """Whether nothing is compressed."""
        return not self.weights.tables and not self.cache.tables

    @cached_property
    def recipe(self) -> Recipe:
        """Raises RecipeError for an unknown technique or option."""
        return Recipe.from_document({"weights": list(self.weights.tables), "cache": list(self.cache.tables)})

    @cached_property
    def key(self) -> str:
        """Equal for cells that run the same, whatever they are called; a control is run on its own."""
        stages = {stage: _resolved(self.recipe, stage) for stage in ("weights", "cache")}
        content = json.dumps([stages, self.control.name if self.control else ""], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Grid:
    """cells: the uncompressed one first, those that share weights together. missing: controls that cannot be run, each
    with the reason.
    """

    cells: tuple[Cell, ...]
    missing: tuple[tuple[Control, str], ...] = ()

    @property
    def baseline(self) -> Cell:
        """The uncompressed cell."""
        return self.cells[0]

    @property
    def scored(self) -> list[Cell]:
        """All but the controls."""
        return [cell for cell in self.cells if cell.control is None]

    @property
    def controls(self) -> list[Cell]:
        """The controls."""
        return [cell for cell in self.cells if cell.control is not None]

    def groups(self) -> Iterator[list[Cell]]:
        """Cells that share weights, in order."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(json.dumps(cell.weights.tables, sort_keys=True), []).append(cell)
        yield from groups.values()


def grid(
    study: Study,
    weights: Sequence[str] | None = None,
    caches: Sequence[str] | None = None,
    own: Recipe | None = None,
    methods: Sequence[Format] = (),
) -> Grid:
    """The study's grid, or of it the formats of these names (the uncompressed ones are always there), and a recipe of
    one's own as one more cell. methods: formats of weights in the place of the study's, the uncompressed one first.
    Raises GridError for an unknown name, with the nearest, RecipeError for `own` with a
    decoding stage, of which a study measures nothing.
    """
    rows, columns = chosen("weights", methods or study.weights, weights), chosen("cache", study.caches, caches)
    controls, missing = _controls(study.controls)
    base = rows[0], columns[0]
    cells = [Cell(rows[0], cache) for cache in columns]
    cells += [Cell(base[0], Format(control.name, control.cache), control) for control in controls]
    cells += [Cell(row, cache) for row in rows[1:] for cache in columns]
    if own is not None:
        cells.append(_own(own, base))
    return Grid(tuple(_unique(cells)), missing)


def chosen(what: str, formats: Sequence[Format], names: Sequence[str] | None) -> list[Format]:
    """The formats of these names in the study's order, the uncompressed one first; None: all. Raises GridError."""
    known = [form.name for form in formats]
    for name in names or ():
        if name not in known:
            raise GridError(f"the study has no {what} format '{name}'. {nearest(name, known)}")
    return [form for place, form in enumerate(formats) if names is None or not place or form.name in names]


def _own(recipe: Recipe, base: tuple[Format, Format]) -> Cell:
    for stage in ("prompt", "decoding"):
        if getattr(recipe, stage):
            raise RecipeError(f"a study measures weights and cache, and this recipe has a {stage} stage: leave it out")
    weights, cache = base
    if recipe.weights:
        weights = Format(Recipe(weights=recipe.weights).label(), tuple(recipe.weights))
    if recipe.cache:
        cache = Format(Recipe(cache=recipe.cache).label(), tuple(recipe.cache))
    return Cell(weights, cache)


def _controls(controls: Iterable[Control]) -> tuple[list[Control], tuple[tuple[Control, str], ...]]:
    """Those that can be run, and the others with the reason: a technique of theirs is not there."""
    ready, missing = [], []
    for control in controls:
        try:
            for table in control.cache:
                registry.load("cache", str(table["technique"]))
        except RecipeError as error:
            missing.append((control, str(error).partition(". ")[0]))
        else:
            ready.append(control)
    return ready, tuple(missing)


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    """Of equal cells the first."""
    distinct: dict[str, Cell] = {}
    for cell in cells:
        distinct.setdefault(cell.key, cell)
    return list(distinct.values())


def _resolved(recipe: Recipe, stage: str) -> list[dict[str, Any]]:
    """A stage's techniques with all their options, defaults included."""
    pairs = zip(getattr(recipe, stage), recipe.techniques(stage), strict=True)
    return [{"technique": table["technique"]} | dataclasses.asdict(technique) for table, technique in pairs]
