"""From open pages to sealed spans, and what a windowed layer lets go of again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thrifty.cache.slots.span import Span
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.slots.sequence_slots import SequenceSlots


def adopt(sequence: SequenceSlots, rows: int) -> None:
    """Every group's first open page becomes a sealed span of `rows` slots of all its layers."""
    for group, page in sequence.tail.take():
        page.tokens = rows
        page.retain(len(group.layers) - 1)
        span = Span(page, rows)
        for layer in group.layers:
            sequence.spans[layer].append(span)
    sequence.tail.rows -= rows


def roll(sequence: SequenceSlots) -> None:
    """Full open pages become sealed spans; windowed layers let go of pages that no later row can see."""
    while sequence.tail.rows >= PAGE:
        adopt(sequence, PAGE)
    for group in sequence.tail.groups:
        if group.window is not None:
            for layer in group.layers:
                _drop_before(sequence, layer, sequence.length - group.window + 1)


def keep_window(sequence: SequenceSlots, layer: int, n: int) -> None:
    """A windowed layer's prompt of n new rows: only whole pages that a later row can still see, each a segment."""
    unseen = n - (sequence.model.windows[layer] or 0) + 1  # negative where a prefix hit is still seen
    if n > PAGE:
        scratch, pages = sequence.spans[layer].pop(), max(0, unseen) // PAGE
        sequence.spans[layer] += sequence.builder.pages(layer, scratch, pages * PAGE)
        sequence.let_go[layer] += pages
    _drop_before(sequence, layer, sequence.length + unseen)


def _drop_before(sequence: SequenceSlots, layer: int, position: int) -> None:
    """Drop the leading spans of a windowed layer whose tokens all lie before `position`."""
    spans = sequence.spans[layer]
    count = 0
    while count < len(spans):
        first = spans[count].segment.positions
        if not isinstance(first, int) or first + spans[count].tokens > position:
            break
        count += 1
    if count:
        for span in spans[:count]:
            span.segment.release()
        del spans[:count]
        sequence.let_go[layer] += count
        sequence.mirror.drop_front(layer, count)
