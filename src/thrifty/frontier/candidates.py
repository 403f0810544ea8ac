"""A recipe that `fit` may measure, and the weights that its figures belong to."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thrifty import registry
from thrifty.recipe import Recipe

Table = dict[str, Any]


class Grid(enum.Enum):
    """Which weights a candidate's figures belong to.

    SHIPPED: those of the checkpoint. ON: rounded, where the checkpoint may already lie on such a grid, so
    that the figure holds for this checkpoint and says nothing of the technique. OFF: rounded in the off-grid
    view, which tells what the technique costs; a measurement, not a recipe to serve with.
    """

    SHIPPED = "as shipped"
    ON = "on the grid"
    OFF = "off the grid"


@dataclass(frozen=True)
class Candidate:
    """A recipe and the weights that it is measured on."""

    recipe: Recipe
    grid: Grid

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.recipe.label()

    @property
    def uncompressed(self) -> bool:
        """Whether it is the baseline of its grid."""
        return not self.recipe.weights and not self.recipe.cache

    @property
    def compresses_cache(self) -> bool:
        """Whether its cache stage does anything but keep everything."""
        return any(table["technique"] != "full" for table in self.recipe.cache)

    @property
    def servable(self) -> bool:
        """Whether it can be chosen."""
        return self.grid is not Grid.OFF

    @cached_property
    def stages(self) -> dict[str, list[Table]]:
        """By stage its techniques with all their options, defaults included."""
        return {stage: _resolved(self.recipe, stage) for stage in registry.STAGES}

    @cached_property
    def weights_key(self) -> str:
        """Equal for candidates that share loaded weights."""
        return _key(self.grid is Grid.OFF, self.stages["weights"])

    @cached_property
    def key(self) -> str:
        """Equal for candidates that are the same recipe on the same weights, whatever they are called, and whether
        options are spelled out or left at their defaults.
        """
        return _key(self.grid is Grid.OFF, *self.stages.values())


BASE = Candidate(Recipe(), Grid.SHIPPED)
OFF_GRID_BASE = Candidate(Recipe(), Grid.OFF)


def _resolved(recipe: Recipe, stage: str) -> list[Table]:
    """A stage's techniques with all their options, defaults included."""
    tables = getattr(recipe, stage)
    techniques = zip(tables, recipe.techniques(stage), strict=True)
    return [{"technique": table["technique"]} | dataclasses.asdict(technique) for table, technique in techniques]


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def of_recipe(recipe: Recipe) -> Candidate:
    """A user's own recipe as a candidate."""
    return Candidate(recipe, Grid.ON if recipe.weights else Grid.SHIPPED)


def grouped(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates that share weights, in the order of their first."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.weights_key, []).append(candidate)
    yield from groups.values()
