"""What --tighten and its options ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from thrifty.cli.shared import opening

if TYPE_CHECKING:
    from thrifty.serving.tightening.ladder import Ladder

FREE_SHARE = 0.1


def ladder_asked(
    recipes: Sequence[Path] | None, limit: int | None, below: float | None, wait: float | None, bounded: bool
) -> Ladder | None:
    """The ladder of recipes, None without --tighten. bounded: whether there is a bound on memory to be short of.

    Raises typer.BadParameter for options that do not go together, RecipeError for a recipe, LadderError for a value.
    """
    if not recipes:
        given = {"limit": limit, "below": below, "wait": wait}
        for name in (name for name, value in given.items() if value is not None):
            raise typer.BadParameter(f"--tighten-{name} is for a ladder of recipes; give --tighten RECIPE too")
        return None
    if not bounded and wait is None:
        raise typer.BadParameter(
            "--tighten acts where memory is short, and there is no bound: give --memory, or --tighten-wait SECONDS"
        )
    if not bounded and below is not None:
        raise typer.BadParameter(
            "--tighten-below is a share of a bound on memory, and there is none: give --memory, or leave it out"
        )
    from thrifty.serving.tightening.ladder import Ladder

    ladder = Ladder(
        rungs=tuple(tuple(_cache_of(path)) for path in recipes),
        limit=len(recipes) if limit is None else limit,
        free_share=FREE_SHARE if below is None else below,
        wait_seconds=wait,
    )
    ladder.check()
    return ladder


def _cache_of(path: Path) -> list[dict[str, object]]:
    """A recipe's cache tables. Raises typer.BadParameter where it has others, or none."""
    recipe = opening.read_recipe(path)
    for stage in ("weights", "prompt", "decoding"):
        if getattr(recipe, stage):
            raise typer.BadParameter(
                f"--tighten {path}: the recipe has [[{stage}]]; a request changes its cache alone: leave them out"
            )
    if not recipe.cache:
        raise typer.BadParameter(f"--tighten {path}: the recipe has no [[cache]]; name at least one technique")
    return recipe.cache
