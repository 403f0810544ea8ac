"""A look into a pass over a prompt: what each layer's last queries and all of its keys are, and nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.cache.view import LayerView

See = Callable[[LayerView, Floats], None]
"""Told a layer's slots, all of the prompt's in order, and the rotated queries fp32 [rows, heads, head_dim] of its last
rows. Both are valid during the call only."""


@dataclass(frozen=True, kw_only=True)
class Observer(CachePolicy):
    """queries: how many of the prompt's last rows are looked at. layers: of which layers `see` is told.

    It takes the place of a cache policy in a pass by layers, so that one layer at a time is held. No slot stays: what
    was read is not read again.
    """

    name: ClassVar[str] = "observer"
    traits: ClassVar[Traits] = Traits(exact=True)

    queries: int
    layers: Collection[int]
    see: See

    def wants(self, model: ModelInfo) -> Statistics:
        """The last queries."""
        return Statistics(queries=self.queries)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Show the layer, and let all of it go."""
        if layer.index in self.layers:
            assert stats.queries is not None, "the observer asked for them"
            self.see(kv, stats.queries)
        return Edits().keep(np.zeros(0, np.int64))

    def kept(self, prompt: int, generated: int = 0) -> int:
        """Nothing."""
        return 0


def unseen(kv: LayerView, queries: Floats) -> None:
    """A `See` for who asks for the bytes of a pass alone."""
