"""The prompt's slots that forced rows score: where native code finds them, and their keys for formulas."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.sealed_spans import SealedSpans
from thrifty.cache.slots.tail import Tail
from thrifty.cache.statistics import Rehearsal
from thrifty.formats import kv
from thrifty.formats.kv import PAGE


class ScoredSlots:
    """Where the native View of one layer holds what the forced rows of a piece see.

    bounds: by KV head the number of sinks, the first slot that is scored and the one behind the last. positions: by
    head those of what is scored, int64. biased: whether slots have a logit bias, which the view applies, or are hidden
    by a selection, which scores do not heed.
    """

    def __init__(self, model: ModelInfo, spans: SealedSpans, tail: Tail, layer: int, piece: Rehearsal) -> None:
        self.layer = layer
        self.bounds: list[tuple[int, int, int]] = []
        self.positions: list[Integers] = []
        own, kv_heads = spans[layer], model.of(layer).kv_heads
        self.biased = layer in spans.selected or any(span.segment.bias is not None for span in own)
        alike = all(isinstance(span.segment.positions, int) and len(span.segment.heads) == kv_heads for span in own)
        edges = [min(piece.sinks, piece.start), piece.start, piece.stop]
        for head in range(kv_heads):
            if head and alike:
                self.bounds.append(self.bounds[0])
                self.positions.append(self.positions[0])
                continue
            positions = _positions(spans, tail, layer, head)
            before, low, high = positions.searchsorted(edges).tolist()
            self.bounds.append((before, low, high))
            self.positions.append(positions[low:high])


class LayerKeys:
    """Keys fp32 of one layer by KV head: the sinks, what a piece scores, and its forced rows so far.

    positions: by head those of what is scored, int64.
    """

    def __init__(self, model: ModelInfo, spans: SealedSpans, tail: Tail, layer: int, piece: Rehearsal) -> None:
        self.layer = layer
        self.positions: list[Integers] = []
        self._tail = tail
        self._filled = 0
        self._before: list[int] = []
        self._keys: list[Floats] = []
        widths = model.of(layer)
        for head in range(widths.kv_heads):
            sinks, before = _between(spans, tail, layer, head, 0, min(piece.sinks, piece.start))
            keys, positions = _between(spans, tail, layer, head, piece.start, piece.stop)
            room = np.empty((len(piece.tokens), widths.head_dim), np.float32)
            self.positions.append(positions)
            self._before.append(len(before))
            self._keys.append(np.concatenate((*sinks, *keys, room)))

    def extend(self, rows: int) -> None:
        """Read the keys of the forced rows up to `rows`."""
        pages, start = self._tail.of(self.layer), self._tail.rows
        while self._filled < rows:
            page, inside = divmod(start + self._filled, PAGE)
            count = min(PAGE - inside, rows - self._filled)
            segment = pages[page]
            for head, keys in enumerate(self._keys):
                slab = segment.slab(self.layer, head)
                read, _ = kv.read(segment.format, slab, segment.capacity, segment.head_dim, inside, count)
                place = self._before[head] + len(self.positions[head]) + self._filled
                keys[place : place + count] = read
            self._filled += count

    def scored(self, head: int) -> slice:
        """Where the scored slots lie among `until`."""
        return slice(self._before[head], self._before[head] + len(self.positions[head]))

    def until(self, head: int, rows: int) -> Floats:
        """[slots, head_dim]: everything up to the first `rows` forced rows."""
        return self._keys[head][: self._before[head] + len(self.positions[head]) + rows]


def _positions(spans: SealedSpans, tail: Tail, layer: int, head: int) -> Integers:
    """int64: those of one head's committed slots, which lie in their order."""
    parts = [span.segment.positions_of(head, span.tokens) for span in spans[layer] if span.holds(head)]
    if tail.rows:
        parts.append(tail.of(layer)[0].positions_of(head, tail.rows))
    return np.concatenate(parts)


def _between(
    spans: SealedSpans, tail: Tail, layer: int, head: int, low: int, high: int
) -> tuple[list[Floats], Integers]:
    """Keys [n, head_dim], in parts, and positions int64 [n] of one head's committed slots at positions low..high."""
    contents = []
    for span in spans[layer]:
        first = span.segment.positions
        outside = isinstance(first, int) and (first >= high or first + span.tokens <= low)
        if span.holds(head) and not outside:
            contents.append(span.read(layer, head))
    if tail.rows:
        contents.append(tail.of(layer)[0].read(layer, head, tail.rows))
    inside = [(positions >= low) & (positions < high) for _, _, positions, _ in contents]
    keys = [part[0][flags] for part, flags in zip(contents, inside, strict=True)]
    places = [part[2][flags] for part, flags in zip(contents, inside, strict=True)]
    return keys, np.concatenate([np.empty(0, np.int64), *places])
