"""The recipes that `fit` measures: settings of the day-one techniques, and compositions of them."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from thrifty.recipe import Recipe

PAGE = 64  # tokens; evicting whole pages leaves no holes

Table = dict[str, Any]

RTN_8: Table = {"technique": "rtn", "bits": 8}
RTN_4: Table = {"technique": "rtn", "bits": 4}
RTN_4_WHOLE: Table = {"technique": "rtn", "bits": 4, "embedding_bits": 4}
KIVI_4: Table = {"technique": "kivi", "bits": 4}
KIVI_2: Table = {"technique": "kivi", "bits": 2}


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


def day_one(prefix: int) -> list[Candidate]:
    """All candidates, those that share weights together, every baseline before what is compared with it.

    prefix: tokens that the measurement compresses. What evicts keeps a half of them (streaming: a quarter), as a number
    of tokens and not as a share, so that a recipe leaves short prompts whole.
    """
    caches = _caches(prefix)
    servable = [Candidate(_recipe((), cache), Grid.SHIPPED) for cache in caches]
    servable += [Candidate(_recipe((weights,), ()), Grid.ON) for weights in (RTN_8, RTN_4, RTN_4_WHOLE)]
    servable += [Candidate(_recipe((RTN_4_WHOLE,), (KIVI_4,)), Grid.ON)]
    off_grid = [Candidate(_recipe(weights, ()), Grid.OFF) for weights in ((), (RTN_8,), (RTN_4,))]
    return servable + off_grid


def _caches(prefix: int) -> list[tuple[Table, ...]]:
    half = max(PAGE, prefix // 2 // PAGE * PAGE)
    quarter = max(PAGE, prefix // 4 // PAGE * PAGE)
    streaming: Table = {"technique": "streaming", "window": quarter}
    snapkv: Table = {"technique": "snapkv", "capacity": half}
    ada_kv: Table = {"technique": "ada-kv", "capacity": half}
    return [
        (),
        (KIVI_4,),
        (KIVI_2,),
        (streaming,),
        (snapkv,),
        (ada_kv,),
        (snapkv, KIVI_4),
        (ada_kv, KIVI_4),
        (snapkv, KIVI_2),
        (streaming, KIVI_4),
    ]


def of_recipe(recipe: Recipe) -> Candidate:
    """A user's own recipe as a candidate."""
    return Candidate(recipe, Grid.ON if recipe.weights else Grid.SHIPPED)


def grouped(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates that share weights, in the order of their first."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.weights_key, []).append(candidate)
    yield from groups.values()


def _recipe(weights: Iterable[Table], cache: Iterable[Table]) -> Recipe:
    stages = {"weights": [dict(table) for table in weights], "cache": [dict(table) for table in cache]}
    return Recipe.from_document(stages)
