"""The native View of a sequence, kept in step with its spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from thrifty.cache.policy import ModelInfo
from thrifty.cache.segment import Segment, Span
from thrifty.formats.kv import FORMATS, PAGE
from thrifty.kernels import dispatch

CHUNK_PAGES = 4
"""Native attention splits at fixed chunks of 4 pages (256 slots), counted from the view's first page."""


def native_view(model: ModelInfo) -> Any:
    """An empty native View, or None where the native module is absent, off, or does not take the head dimension."""
    if model.head_dim % 64:
        return None
    module = dispatch.native()
    return None if module is None else module.View(model.layers, model.kv_heads, model.head_dim)


class Mirror:
    """Pushes spans into a native View. Every call keeps view and Python lists equal."""

    def __init__(self, view: Any, model: ModelInfo) -> None:
        self.view = view
        self._model = model

    def rebuild(
        self, layer: int, spans: Sequence[Span], open_pages: Iterable[tuple[Segment, int]], first_page: int
    ) -> None:
        """Everything of one layer anew. open_pages: with the tokens already in each. first_page: how many pages a
        windowed layer has let go, so that attention chunks stay where they were."""
        self.view.clear(layer, -1)
        for head in range(self._model.kv_heads):
            self._advance(layer, head, spans, first_page % CHUNK_PAGES)
        push = self.view.push
        for span in spans:
            segment, source = span.segment, span.layer(layer)
            owner, form = segment.owner, FORMATS.index(segment.format)
            first, stride = owner.address(source, owner.heads[0]), owner.slab_stride
            for place, head in enumerate(segment.heads):
                address = first + place * stride
                bias = segment.bias_address(source, head)
                push(layer, head, address, span.tokens, segment.capacity, form, bias, True)
        for segment, tokens in open_pages:
            self.open_page(layer, segment, tokens)

    def exchange(self, layer: int, index: int, span: Span) -> None:
        """The span at `index`, which holds every head as all before it do, is now this one, of as many tokens."""
        segment, source = span.segment, span.layer(layer)
        form = FORMATS.index(segment.format)
        for head in segment.heads:
            address, bias = segment.address(source, head), segment.bias_address(source, head)
            self.view.exchange(layer, head, index, address, segment.capacity, form, bias)

    def open_page(self, layer: int, segment: Segment, tokens: int = 0) -> None:
        """An open segment that native code appends to."""
        form = FORMATS.index(segment.format)
        for head in segment.heads:
            self.view.push(layer, head, segment.address(layer, head), tokens, segment.capacity, form, 0, False)

    def drop_front(self, layer: int, spans: int) -> None:
        """A windowed layer let go of its first spans."""
        for head in range(self._model.kv_heads):
            self.view.drop_front(layer, head, spans)

    def _advance(self, layer: int, head: int, spans: Sequence[Span], pages: int) -> None:
        if not pages or not spans:
            return
        segment = spans[0].segment
        address = segment.address(spans[0].layer(layer), head)
        for _ in range(pages):
            self.view.push(layer, head, address, PAGE, segment.capacity, FORMATS.index(segment.format), 0, True)
        self.view.drop_front(layer, head, pages)
