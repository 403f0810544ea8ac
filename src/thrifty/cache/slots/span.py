"""A segment, or its beginning, as one sequence holds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.slots.segment import Contents, Segment, bias_row


@dataclass(frozen=True, slots=True)
class Span:
    """The first `tokens` slots of a segment, as a view holds them. One object serves all layers of the segment.

    source: the layer whose slabs are read where a layer shares another's cache; None for its own.
    """

    segment: Segment
    tokens: int
    source: int | None = None

    def layer(self, layer: int) -> int:
        """The layer to read on behalf of `layer`."""
        return layer if self.source is None else self.source

    def holds(self, head: int) -> bool:
        """Whether the segment holds this KV head."""
        return head in self.segment.heads

    def read(self, layer: int, head: int) -> Contents:
        """Keys, values fp32 [n, head_dim], positions int64 [n], bias fp32 [n] or None, holes left out."""
        keys, values, positions, bias = self.segment.read(self.layer(layer), head, self.tokens)
        live = self.live(layer, head)
        if live is None:
            return keys, values, positions, bias
        return keys[live], values[live], positions[live], None if bias is None else bias[live]

    def bias(self, layer: int, head: int) -> Floats:
        """fp32 [tokens]: the logit biases of one head, 0 where there are none and −inf for holes."""
        segment = self.segment
        if segment.bias is None:
            return np.zeros(self.tokens, np.float32)
        return bias_row(segment, segment.bias, self.layer(layer), head)[: self.tokens]

    def bias_rows(self, layer: int) -> Floats | None:
        """fp32 [heads, capacity] of one layer, None where there is no bias."""
        segment = self.segment
        return None if segment.bias is None else segment.bias[segment.layers.index(self.layer(layer))]

    def live(self, layer: int, head: int) -> Integers | None:
        """int64: the slots of one head that are not holes; None where there are no holes."""
        return np.flatnonzero(self.bias(layer, head) > -np.inf) if self.segment.holes else None

    def count(self, layer: int, head: int) -> int:
        """Slots of one head, holes left out; 0 where the segment does not hold the head."""
        if head not in self.segment.heads:
            return 0
        return int(np.count_nonzero(self.bias(layer, head) > -np.inf)) if self.segment.holes else self.tokens
