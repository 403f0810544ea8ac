"""What of a sequence lies on disk and is read at every step: head group by head group, into a few buffers.

HeadInfer (arXiv:2502.12574, head-wise offloading) keeps one buffer for the head group that is attended to and one for
the next, which is read meanwhile. A buffer holds a group of any layer; native code (`attention/streams.hpp`) reads
into it. So what a sequence holds in memory is that of its longest group, as often as there are buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import Bytes
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.formats.kv import FORMATS
from thrifty.storage.disk import BLOCK

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation

BUFFERS = 2
"""A group is attended to while the next one is read."""


@dataclass
class Group:
    """KV heads first..last-1 of one layer. reads: offset in the file, bytes, bytes that must come, place in the buffer.
    places: by span (its number in the layer) and head, where its slab begins in the buffer. nbytes: of the buffer.
    """

    first: int
    last: int
    reads: list[tuple[int, int, int, int]] = field(default_factory=list)
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    nbytes: int = 0


class Streaming:
    """The buffers of one sequence, and what is read into them. heads: of a group."""

    def __init__(self, tiers: Tiers, model: ModelInfo, reservation: Reservation | None, heads: int) -> None:
        self.heads = heads
        self._tiers = tiers
        self._model = model
        self._reservation = reservation
        self._buffers: Segment | None = None
        self._first: dict[int, int] = {}
        number = 0
        for layer in model.policy_layers:
            self._first[layer] = number
            number += -(-model.of(layer).kv_heads // heads)

    def groups(self, layer: int, spans: Sequence[Span]) -> list[Group]:
        """What is read of a layer's spans; groups of which nothing lies on disk are left out."""
        heads = self._model.of(layer).kv_heads
        groups = [Group(first, min(first + self.heads, heads)) for first in range(0, heads, self.heads)]
        for number, span in enumerate(spans):
            if span.segment.tier == "disk":
                for group in groups:
                    _add(group, number, span, layer)
        return [group for group in groups if group.reads]

    def holds(self, groups: Sequence[Group]) -> bool:
        """Whether the buffers are large enough."""
        need = max((group.nbytes for group in groups), default=0)
        return need == 0 or (self._buffers is not None and self._buffers.slab_bytes >= need)

    def make_buffers(self, nbytes: int) -> None:
        """Buffers of so many bytes, whole blocks, in the place of those that it had. Raises BudgetError or StorageError
        with none."""
        self.close()
        heads = tuple(range(BUFFERS))
        self._buffers = Segment(
            self._tiers, (0,), heads, 0, self._model.format, 0, reservation=self._reservation, slab_bytes=nbytes
        )

    def push(self, view: Any, layer: int, spans: Sequence[Span], groups: Sequence[Group]) -> None:
        """Give a native view the spans of a layer of which some lie on disk: these in the buffers, which steps fill."""
        for number, span in enumerate(spans):
            segment, source = span.segment, span.layer(layer)
            bias, form, owner = span.bias_rows(layer), FORMATS.index(segment.format), segment.owner
            for row, head in enumerate(segment.heads):
                if owner.run is not None:
                    slab = owner.slab(source, head)
                else:
                    slab = self._slab(layer, groups, number, head, owner.slab_bytes)
                own = None if bias is None else bias[row]
                view.push(layer, head, slab, span.tokens, segment.capacity, form, own, True)
        disk = self._tiers.require_disk()
        for group in groups:
            reads = np.array(group.reads, np.int64)
            where = self._number(layer, group) % BUFFERS
            view.stream(layer, group.first, group.last, disk.descriptor, disk.direct, where, self._buffer(where), reads)

    def segments(self) -> Iterator[Segment]:
        """The memory of its buffers, one reference."""
        if self._buffers is not None:
            yield self._buffers

    def close(self) -> None:
        """Give the buffers back: no view may use them any more."""
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            buffers.release()

    def _slab(self, layer: int, groups: Sequence[Group], number: int, head: int, nbytes: int) -> Bytes:
        """uint8 [nbytes]: where a head of a layer's span lies when its group was read."""
        group = next(group for group in groups if group.first <= head < group.last)
        place = group.places[number, head]
        return self._buffer(self._number(layer, group) % BUFFERS)[place : place + nbytes]

    def _number(self, layer: int, group: Group) -> int:
        """Of the group among those of all layers, in the order in which steps come to them."""
        return self._first[layer] + group.first // self.heads

    def _buffer(self, number: int) -> Bytes:
        assert self._buffers is not None, "make_buffers was called before"
        return self._buffers.slab(0, number)


def _add(group: Group, number: int, span: Span, layer: int) -> None:
    """One read of what a span has of the group's heads, which lie side by side."""
    segment, source = span.segment, span.layer(layer)
    own = [head for head in segment.heads if group.first <= head < group.last]
    if not own:
        return
    slab = segment.owner.slab_bytes
    owner = segment.owner
    assert owner.extent is not None, "a segment in memory has no place on disk"
    start = owner.extent.start + owner.place(source, own[0]) * slab
    first = start // BLOCK * BLOCK
    whole = -(-(start + len(own) * slab - first) // BLOCK) * BLOCK
    group.reads.append((first, whole, start + len(own) * slab - first, group.nbytes))
    for place, head in enumerate(own):
        group.places[number, head] = group.nbytes + start - first + place * slab
    group.nbytes += whole
