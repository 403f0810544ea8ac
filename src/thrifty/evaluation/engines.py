"""The two sides of an evaluation: an engine of the uncompressed model, and one of a recipe's model beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.api import open_engine
from thrifty.recipe import Recipe

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.models.model import Model


@dataclass(frozen=True)
class Engines:
    """Opens engines that share their options. threads, native: as of Engine.

    None has a prefix tree: every run computes its own prompt. Cache techniques are the measurements' own, request by
    request.
    """

    threads: int | None = None
    native: bool | None = None

    @contextmanager
    def open(self, model: Model, recipe: Recipe | None = None) -> Iterator[Engine]:
        """An engine for a while, over the model with the recipe's weights, its prompt programs and its decoding for all
        requests.
        """
        chosen = recipe or Recipe()
        engine = open_engine(
            model,
            Recipe(weights=chosen.weights, prompt=chosen.prompt, decoding=chosen.decoding),
            threads=self.threads,
            native=self.native,
            prefix_tree=False,
        )
        try:
            yield engine
        finally:
            engine.close()

    @contextmanager
    def beside(self, baseline: Engine, recipe: Recipe) -> Iterator[Engine]:
        """An engine of the recipe: the baseline's own where the recipe changes nothing but the cache."""
        if not recipe.weights and not recipe.prompt and not recipe.decoding:
            yield baseline
            return
        with self.open(baseline.model, recipe) as engine:
            yield engine
