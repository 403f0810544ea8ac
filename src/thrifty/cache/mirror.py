"""The native View of a sequence, kept in step with its spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thrifty.cache.model_info import ModelInfo
from thrifty.cache.segment import Segment, Span
from thrifty.formats.kv import FORMATS, PAGE
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.sequence_slots import SequenceSlots

CHUNK_PAGES = 4
"""Native attention splits at fixed chunks of 4 pages (256 slots), counted from the view's first page."""


def native_view(model: ModelInfo) -> Any:
    """An empty native View, or None where the native module is absent, off, or does not take the head dimension."""
    if not dispatch.takes_head_dim(model.head_dim):
        return None
    module = dispatch.native()
    return None if module is None else module.View(model.layers, model.kv_heads, model.head_dim)


class Mirror:
    """Pushes what a sequence holds into a native View, from when it is first asked for. Every call keeps view and
    Python lists equal, or lets the view go; where there is none it has no effect.

    view: the native View, None while there is none. It knows how many rows are uncommitted, `OpenRows` then does not.
    """

    def __init__(self, model: ModelInfo) -> None:
        self.view: Any = None
        self._model = model
        self._possible = True

    def follow(self, sequence: SequenceSlots, *, sums: bool) -> Any:
        """The view, made where there is none; None where the sequence cannot have one as it is. sums: whether native
        code is to collect column sums.
        """
        if self.view is None and self._possible and _can_follow(sequence, sums):
            view = native_view(self._model)
            self._possible = view is not None
            if view is not None:
                for layer in range(self._model.layers):
                    self._push_all(view, sequence, layer)
                sequence.open_rows.pending = {}  # the view has them
                self.view = view
        return self.view

    def drop(self) -> None:
        """Let the view go, with the uncommitted rows that native code appended."""
        self.view = None

    def hand_back(self, sequence: SequenceSlots) -> None:
        """Let the view go, but not the uncommitted rows that native code appended: a chunk may be half done."""
        if self.view is not None:
            found = {layer: self.uncommitted(sequence, layer) for layer in range(self._model.layers)}
            sequence.open_rows.pending = {layer: rows for layer, rows in found.items() if rows}
        self.view = None

    def uncommitted(self, sequence: SequenceSlots, layer: int) -> int:
        """Rows of a layer that the view has and the sequence has not committed."""
        assert self.view is not None, "the native view was asked for"
        sealed = sum(span.tokens for span in sequence.spans[layer] if span.holds(0))
        return int(self.view.tokens(layer, 0)) - sealed - sequence.open_rows.committed(layer)

    def widest(self, layers: Sequence[int]) -> int:
        """Slots of the head that holds most."""
        assert self.view is not None, "the native view was asked for"
        heads = range(self._model.kv_heads)
        return max((self.view.tokens(layer, head) for layer in layers for head in heads), default=0)

    def truncate(self, rows: int) -> None:
        """Drop the newest rows of every layer."""
        if self.view is not None:
            for layer in range(self._model.layers):
                self.view.truncate(layer, rows)

    def rebuild(self, sequence: SequenceSlots, layer: int) -> None:
        """Everything of one layer anew."""
        if self.view is not None:
            self._push_all(self.view, sequence, layer)

    def exchange(self, layer: int, index: int, span: Span) -> None:
        """The span at `index`, which holds every head as all before it do, is now this one, of as many tokens."""
        if self.view is None:
            return
        segment, source = span.segment, span.layer(layer)
        form = FORMATS.index(segment.format)
        for head in segment.heads:
            address, bias = segment.address(source, head), segment.bias_address(source, head)
            self.view.exchange(layer, head, index, address, segment.capacity, form, bias)

    def open_page(self, layer: int, segment: Segment) -> None:
        """An open segment that native code appends to."""
        if self.view is not None:
            _push_open(self.view, layer, segment, 0)

    def drop_front(self, layer: int, spans: int) -> None:
        """A windowed layer let go of its first spans."""
        if self.view is not None:
            for head in range(self._model.kv_heads):
                self.view.drop_front(layer, head, spans)

    def _push_all(self, view: Any, sequence: SequenceSlots, layer: int) -> None:
        view.clear(layer, -1)
        spans = sequence.spans[layer]
        for head in range(self._model.kv_heads):
            _advance(view, layer, head, spans, sequence.let_go[layer] % CHUNK_PAGES)
        push = view.push
        for span in spans:
            segment, source = span.segment, span.layer(layer)
            owner, form = segment.owner, FORMATS.index(segment.format)
            first, stride = owner.address(source, owner.heads[0]), owner.slab_stride
            for place, head in enumerate(segment.heads):
                address = first + place * stride
                bias = segment.bias_address(source, head)
                push(layer, head, address, span.tokens, segment.capacity, form, bias, True)
        for segment, tokens in sequence.open_rows.pages(layer):
            _push_open(view, layer, segment, tokens)


def _can_follow(sequence: SequenceSlots, sums: bool) -> bool:
    """No selection, no segment on disk, and no column sums over slots with holes: native code has none of these."""
    if sequence.selected or sequence.parked or (sums and _has_holes(sequence)):
        return False
    return all(segment.tier == "memory" for segment in sequence.segments())


def _has_holes(sequence: SequenceSlots) -> bool:
    return any(span.segment.parent is not None for layer in sequence.global_layers for span in sequence.spans[layer])


def _push_open(view: Any, layer: int, segment: Segment, tokens: int) -> None:
    form = FORMATS.index(segment.format)
    for head in segment.heads:
        view.push(layer, head, segment.address(layer, head), tokens, segment.capacity, form, 0, False)


def _advance(view: Any, layer: int, head: int, spans: Sequence[Span], pages: int) -> None:
    """Push and drop as many pages, so that attention chunks of a windowed layer stay where they were."""
    if not pages or not spans:
        return
    segment = spans[0].segment
    address = segment.address(spans[0].layer(layer), head)
    for _ in range(pages):
        view.push(layer, head, address, PAGE, segment.capacity, FORMATS.index(segment.format), 0, True)
    view.drop_front(layer, head, pages)
