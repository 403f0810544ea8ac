"""One layer of a sequence as a policy sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.slots.segment import Contents
from thrifty.cache.slots.span import Span

if TYPE_CHECKING:
    from thrifty.cache.model_info import LayerInfo


@dataclass(frozen=True)
class Stretch:
    """Consecutive slots of a head in one segment: slots start..stop, in `format`, in `tier`."""

    start: int
    stop: int
    format: str
    tier: str
    quantised: bool
    capacity: int


class LayerView:
    """Read-only view of one layer, what a policy is shown. Valid until the cache is next changed.

    Slots of a head are counted from 0 in order; each head may hold its own number. Arrays are copies: writing to them
    changes nothing.
    """

    def __init__(self, info: LayerInfo, spans: Sequence[Span]) -> None:
        self.info = info
        self.layer = info.index
        self._spans = spans

    @property
    def kv_heads(self) -> int:
        """Number of KV heads."""
        return self.info.widths.kv_heads

    @property
    def head_dim(self) -> int:
        """Size of one key or value."""
        return self.info.widths.head_dim

    def count(self, head: int = 0) -> int:
        """Slots of a head."""
        return sum(span.count(self.layer, head) for span in self._spans)

    @property
    def uniform(self) -> bool:
        """True where no segment holds only some of the heads, so that every head has the same slots."""
        return all(len(span.segment.heads) == self.kv_heads and span.segment.parent is None for span in self._spans)

    def keys(self, head: int) -> Floats:
        """fp32 [count, head_dim], rotated; a copy."""
        return np.concatenate([self._empty(), *(part[0] for part in self._parts(head))])

    def values(self, head: int) -> Floats:
        """fp32 [count, head_dim]; a copy."""
        return np.concatenate([self._empty(), *(part[1] for part in self._parts(head))])

    def positions(self, head: int) -> Integers:
        """int64 [count]: the positions at which the keys are rotated."""
        parts = [np.empty(0, np.int64)]
        for span in self._spans:
            if span.holds(head):
                positions = span.segment.positions_of(head, span.tokens)
                live = span.live(self.layer, head)
                parts.append(positions if live is None else positions[live])
        return np.concatenate(parts)

    def bias(self, head: int) -> Floats:
        """fp32 [count]: logit biases, 0 where a slot has none."""
        parts = [np.empty(0, np.float32)]
        for span in self._spans:
            if not span.holds(head):
                continue
            bias, live = span.bias(self.layer, head), span.live(self.layer, head)
            parts.append(bias if live is None else bias[live])
        return np.concatenate(parts)

    def stretches(self, head: int = 0) -> list[Stretch]:
        """How the head's slots lie in segments, in order."""
        stretches, start = [], 0
        for span in self._spans:
            count = span.count(self.layer, head)
            if count:
                segment = span.segment
                stretches.append(
                    Stretch(start, start + count, segment.format, segment.tier, segment.quantised, segment.capacity)
                )
                start += count
        return stretches

    def stretches_from_end(self, head: int = 0) -> Iterator[Stretch]:
        """As `stretches`, newest first, with slots counted from the head's end: start and stop are ≤ 0."""
        stop = 0
        for span in reversed(self._spans):
            count = span.count(self.layer, head)
            if count:
                segment = span.segment
                yield Stretch(stop - count, stop, segment.format, segment.tier, segment.quantised, segment.capacity)
                stop -= count

    def _parts(self, head: int) -> list[Contents]:
        return [span.read(self.layer, head) for span in self._spans if span.holds(head)]

    def _empty(self) -> Floats:
        return np.empty((0, self.head_dim), np.float32)
