"""From open pages to sealed spans, and what a windowed layer lets go of again."""

from __future__ import annotations

from thrifty.cache.slots.builder import Builder
from thrifty.cache.slots.native_view import NativeView
from thrifty.cache.slots.sealed_spans import SealedSpans
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.tail import Tail
from thrifty.formats.kv import PAGE


def seal_first_pages(tail: Tail, spans: SealedSpans, rows: int) -> None:
    """Every group's first open page becomes a sealed span of `rows` slots of all its layers."""
    for group, page in tail.take():
        page.tokens = rows
        page.retain(len(group.layers) - 1)
        span = Span(page, rows)
        for layer in group.layers:
            spans.add(layer, span)
    tail.rows -= rows


def reopen(tail: Tail, spans: SealedSpans, builder: Builder, length: int) -> None:
    """The slots behind the last whole page of a prompt of `length` tokens, whose every layer ends with them, go on in
    an open page: as they would lie had the prompt not been computed layer by layer. Raises BudgetError or StorageError.
    """
    rows = length % PAGE
    if not rows:
        return
    tail.open(1, length)
    for group, (page,) in zip(tail.groups, tail.pages, strict=True):
        for layer in group.layers:
            last = spans[layer][-1]
            start = last.tokens - rows
            cut = builder.copy(last, (layer,), last.segment.heads, start, last.tokens, last.segment.format)
            page.slabs([layer])[...] = cut.segment.slabs()
            cut.segment.release()
            if start:
                spans.exchange(layer, -1, Span(last.segment, start))
            else:
                spans.take(layer).segment.release()
    tail.rows = rows
    tail.number(length)


def roll(tail: Tail, spans: SealedSpans, view: NativeView, length: int) -> None:
    """Full open pages become sealed spans; windowed layers let go of pages that no row behind `length` tokens sees."""
    while tail.rows >= PAGE:
        seal_first_pages(tail, spans, PAGE)
    for group in tail.groups:
        if group.window is not None:
            for layer in group.layers:
                drop_before(spans, view, layer, length - group.window + 1)


def keep_window(spans: SealedSpans, builder: Builder, layer: int, n: int, unseen: int) -> None:
    """A windowed layer's prompt of n new rows, its last span: only whole pages that a later row can still see, each a
    segment. unseen: how many of the rows none does, negative where a prefix hit is still seen.
    """
    if n > PAGE:
        pages = max(0, unseen) // PAGE
        spans.add(layer, *builder.pages(layer, spans.take(layer), pages * PAGE))
        spans.skip(layer, pages)


def drop_before(spans: SealedSpans, view: NativeView, layer: int, position: int) -> None:
    """Drop the leading spans of a windowed layer whose tokens all lie before `position`."""
    count = 0
    for span in spans[layer]:
        first = span.segment.positions
        if not isinstance(first, int) or first + span.tokens > position:
            break
        count += 1
    if count:
        spans.drop_front(layer, count)
        view.drop_front(layer, count)
