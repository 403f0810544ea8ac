"""Rows that no sealed span holds yet: in the open tail, or in the scratch of the one layer that is being prefilled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Array
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.moving import move_rows
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.tail import Tail
from thrifty.cache.slots.tiers import Tiers
from thrifty.errors import PromptError
from thrifty.formats import kv_batch
from thrifty.formats.kv import PAGE
from thrifty.storage.ledger import Reservation


@dataclass(frozen=True)
class Scratch:
    """Full-precision room for a whole prompt of one layer. rows: as many as it was taken for; shared: the first of
    them, which a prefix hit brought."""

    layer: int
    segment: Segment
    rows: int
    shared: int = 0


class OpenRows:
    """Where a layer's new rows go, and how many lie there.

    pending: by layer, rows appended since the last commit; while there is a native view, it knows them instead.
    """

    def __init__(self, tiers: Tiers, model: ModelInfo, tail: Tail, reservation: Reservation | None) -> None:
        self.tail = tail
        self.scratch: Scratch | None = None
        self.pending: dict[int, int] = {}
        self._tiers = tiers
        self._model = model
        self._reservation = reservation

    def rows(self, layer: int) -> int:
        """Rows of a layer that lie in its open segments."""
        return self.committed(layer) + self.pending.get(layer, 0)

    def committed(self, layer: int) -> int:
        """Those of them that were committed before, by this sequence or by the one that a prefix hit shares with."""
        scratch = self._scratched(layer)
        return self.tail.rows if scratch is None else scratch.shared

    def segments(self, layer: int) -> list[Segment]:
        """The open segments of a layer, in order."""
        scratch = self._scratched(layer)
        return self.tail.of(layer) if scratch is None else [scratch.segment]

    def pages(self, layer: int) -> list[tuple[Segment, int]]:
        """A layer's open segments, each with the rows in it."""
        rows, pages = self.rows(layer), []
        for page in self.segments(layer):
            pages.append((page, min(page.capacity, rows)))
            rows -= pages[-1][1]
        return pages

    def append(self, layer: int, key: Array, value: Array) -> None:
        """Write rows [n, kv_heads, head_dim]. Raises PromptError where there is no room for them."""
        rows = len(key)
        start = self.rows(layer)
        pages = self.segments(layer)
        room = sum(page.capacity for page in pages)
        if start + rows > room:
            raise PromptError(f"layer {layer} has room for {room - start} more rows, not {rows}: reserve them first")
        first = 0
        for page in pages:
            stop = first + page.capacity
            low, high = max(start, first), min(start + rows, stop)
            if low < high:
                part = slice(low - start, high - start)
                for head in range(self._model.of(layer).kv_heads):
                    page.write(layer, head, low - first, key[part, head], value[part, head])
            first = stop
        self.pending[layer] = self.pending.get(layer, 0) + rows

    def check(self, n: int) -> None:
        """Raise PromptError where the layers do not hold n uncommitted rows each."""
        layers = self._model.attention_layers
        if any(count != n for count in self.pending.values()) or len(self.pending) != len(layers):
            rows = sorted({self.pending.get(layer, 0) for layer in layers})
            raise PromptError(f"commit({n}): the layers hold {rows} uncommitted rows; truncate or append first")

    def reject(self, n: int) -> None:
        """Drop the newest n uncommitted rows."""
        self.pending = {layer: rows - n for layer, rows in self.pending.items() if rows > n}

    def keep(self, rows: Sequence[int]) -> None:
        """Move these uncommitted rows of every layer, counted from the first of them, to the first places, in this
        rising order; `reject` drops the rest. Raises PromptError while a layer has its scratch.
        """
        if self.scratch is not None:
            raise PromptError("rows of a prompt that is being prefilled layer by layer are not chosen: truncate them")
        first = self.tail.rows
        for pages in self.tail.pages:
            move_rows(pages, first + np.array(rows, np.int64), first)

    def begin_scratch(self, layer: int, rows: int, length: int, prefix: Sequence[Span] = ()) -> Segment:
        """Room for a prompt's rows of one layer, behind `length` tokens. prefix: the pages of the newest of these,
        which are copied to its front. Raises BudgetError or StorageError, with nothing changed."""
        shared = sum(span.tokens for span in prefix)
        widths = self._model.of(layer)
        segment = Segment(
            self._tiers,
            (layer,),
            tuple(range(widths.kv_heads)),
            -(-(shared + rows) // PAGE) * PAGE,
            self._model.format,
            widths.head_dim,
            category="scratch",
            reservation=self._reservation,
        )
        segment.positions = length - shared
        slabs = segment.slabs()
        for place, span in enumerate(prefix):
            page = span.segment.slabs([span.layer(layer)])
            kv_batch.place_page(page, slabs, segment.format, segment.capacity, segment.head_dim, place)
        self.pending.pop(layer, None)
        self.scratch = Scratch(layer, segment, shared + rows, shared)
        return segment

    def end_scratch(self, layer: int) -> Segment:
        """The scratch, full now, as a segment of the cache; the caller owns its reference. Raises PromptError where
        the layer was not begun."""
        if self.scratch is None or self.scratch.layer != layer:
            raise PromptError(f"layer {layer} was not begun: call begin_layer first")
        segment = self.scratch.segment
        segment.tokens = self.scratch.rows
        segment.recategorise("cache")
        self.scratch = None
        self.pending.pop(layer, None)
        return segment

    def close(self) -> None:
        """Give tail and scratch back."""
        self.tail.close()
        if self.scratch is not None:
            self.scratch.segment.release()
            self.scratch = None

    def _scratched(self, layer: int) -> Scratch | None:
        return self.scratch if self.scratch is not None and self.scratch.layer == layer else None
