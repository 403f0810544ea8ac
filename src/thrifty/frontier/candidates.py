"""The recipes that `fit` measures: settings of the day-one techniques, and compositions of them."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from thrifty import registry
from thrifty.recipe import Recipe

Table = dict[str, Any]

RTN_8: Table = {"technique": "rtn", "bits": 8}
RTN_4: Table = {"technique": "rtn", "bits": 4}
RTN_4_COARSE: Table = {"technique": "rtn", "bits": 4, "group": 128}
RTN_4_WHOLE: Table = {"technique": "rtn", "bits": 4, "group": 64, "embedding_bits": 4}
KIVI_4: Table = {"technique": "kivi", "bits": 4}
KIVI_2: Table = {"technique": "kivi", "bits": 2}
STREAMING: Table = {"technique": "streaming", "sinks": 4, "window": 508}
SNAPKV: Table = {"technique": "snapkv", "keep": 0.5}
ADA_KV: Table = {"technique": "ada-kv", "keep": 0.5}

# weights tables, then the cache tables that are tried with them
SETTINGS: tuple[tuple[tuple[Table, ...], tuple[tuple[Table, ...], ...]], ...] = (
    (
        (),
        (
            (),
            (KIVI_4,),
            (KIVI_2,),
            (STREAMING,),
            (SNAPKV,),
            (ADA_KV,),
            (SNAPKV, KIVI_4),
            (ADA_KV, KIVI_4),
            (SNAPKV, KIVI_2),
            (STREAMING, KIVI_4),
        ),
    ),
    ((RTN_8,), ((),)),
    ((RTN_4,), ((),)),
    ((RTN_4_COARSE,), ((), (KIVI_4,))),
    ((RTN_4_WHOLE,), ((), (KIVI_4,), (SNAPKV, KIVI_4))),
)
OFF_GRID: tuple[tuple[Table, ...], ...] = ((RTN_8,), (RTN_4,), (RTN_4_COARSE,))


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

    @property
    def weights_key(self) -> str:
        """Equal for candidates that share loaded weights."""
        return json.dumps([self.grid is Grid.OFF, self.recipe.weights], sort_keys=True)


def day_one() -> list[Candidate]:
    """All candidates, those that share weights together, every baseline before what is compared with it.

    Techniques that this installation lacks are left out.
    """
    known = {stage: registry.names(stage) for stage in ("weights", "cache")}
    servable = [
        of_recipe(_recipe(weights, cache))
        for weights, caches in SETTINGS
        for cache in caches
        if _known(weights, known["weights"]) and _known(cache, known["cache"])
    ]
    off_grid = [
        Candidate(_recipe(weights, ()), Grid.OFF) for weights in ((), *OFF_GRID) if _known(weights, known["weights"])
    ]
    return servable + off_grid


def of_recipe(recipe: Recipe) -> Candidate:
    """A user's own recipe as a candidate."""
    return Candidate(recipe, Grid.ON if recipe.weights else Grid.SHIPPED)


def grouped(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates that share weights, in the order of their first."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.weights_key, []).append(candidate)
    yield from groups.values()


def _known(tables: Iterable[Table], names: list[str]) -> bool:
    return all(table["technique"] in names for table in tables)


def _recipe(weights: Iterable[Table], cache: Iterable[Table]) -> Recipe:
    stages = {"weights": [dict(table) for table in weights], "cache": [dict(table) for table in cache]}
    return Recipe.from_document(stages)
