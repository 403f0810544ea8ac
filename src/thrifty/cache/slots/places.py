"""Places and slots: native attention and column sums count the holes of evicted slots, policies do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Integers
from thrifty.cache.slots.span import Span


@dataclass(frozen=True)
class Places:
    """Where the slots of a layer with holes lie among all its places.

    slots: by KV head int64, the place of every sealed slot. sealed: by KV head its sealed places, holes counted: open
    rows follow, one place a row.
    """

    slots: tuple[Integers, ...]
    sealed: tuple[int, ...]

    def of(self, head: int, count: int) -> Integers:
        """int64 [count]: the places of a head's first `count` slots, open rows among them."""
        own = self.slots[head]
        rows = count - len(own)
        if rows <= 0:
            return own[:count]
        return np.concatenate((own, np.arange(self.sealed[head], self.sealed[head] + rows)))

    def slots_in(self, head: int, width: int) -> int:
        """How many slots of a head lie in the first `width` places."""
        return len(self.slots[head]) + width - self.sealed[head]


def places(spans: Sequence[Span], layer: int, heads: int) -> Places | None:
    """The places of a layer's slots; None where it has no holes: slots are places then."""
    if not any(span.segment.holes for span in spans):
        return None
    slots, sealed = [], []
    for head in range(heads):
        parts, first = [np.empty(0, np.int64)], 0
        for span in spans:
            if not span.holds(head):
                continue
            live = span.live(layer, head)
            parts.append(np.arange(first, first + span.tokens) if live is None else live + first)
            first += span.tokens
        slots.append(np.concatenate(parts))
        sealed.append(first)
    return Places(tuple(slots), tuple(sealed))
