"""Going back to fewer committed tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thrifty.cache.editing.evicting import keep
from thrifty.cache.slots.span import Span
from thrifty.cache.view import LayerView
from thrifty.errors import PromptError
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.slots.sequence_slots import SequenceSlots


def roll_back(slots: SequenceSlots, length: int) -> None:
    """Drop the committed slots of position `length` and beyond, after `check`; what a policy evicted stays evicted."""
    tail = slots.tail
    if slots.length - length <= tail.rows:
        tail.rows -= slots.length - length
    else:
        if not tail.pages[0]:
            tail.open(1, slots.length)
        tail.rows = 0
        for layer in range(slots.model.layers):
            _trim(slots, layer, length)
        _reopen(slots)
    slots.spans.shorten_selections()
    slots.length = length
    tail.number(length)


def check(slots: SequenceSlots, length: int) -> None:
    """Raise PromptError where a windowed layer no longer has what a sequence of `length` tokens needs."""
    if length < 0:
        raise PromptError(f"cannot drop {slots.length - length} of {slots.length} tokens")
    for group in slots.tail.groups:
        if group.window is None:
            continue
        first = _first_position(slots, group.layers[0])
        if first > max(0, length - group.window + 1):
            raise PromptError(
                f"cannot go back to {length} tokens: layers with a window of {group.window} have let go of tokens that "
                f"the shorter sequence needs; go back to {first + group.window - 1} or more"
            )


def _first_position(slots: SequenceSlots, layer: int) -> int:
    if not slots.spans[layer]:
        return slots.length - slots.tail.rows
    first = slots.spans[layer][0].segment.positions
    return first if isinstance(first, int) else int(first.min())


def _trim(slots: SequenceSlots, layer: int, length: int) -> None:
    spans = slots.spans[layer]
    ragged = False
    for index in reversed(range(len(spans))):
        span = spans[index]
        counts = {int((span.segment.positions_of(head, span.tokens) < length).sum()) for head in span.segment.heads}
        if counts == {span.tokens}:
            continue
        if len(counts) > 1 or span.segment.holes:
            ragged = True
        elif counts == {0}:
            slots.spans.take(layer, index).segment.release()
        else:
            slots.spans.exchange(layer, index, Span(span.segment, counts.pop(), span.source))
    if ragged:
        view = LayerView(slots.model.layer(layer, length), spans)
        heads = range(slots.model.of(layer).kv_heads)
        kept = [np.flatnonzero(view.positions(head) < length) for head in heads]
        slots.spans.replace(layer, keep(slots.builder, layer, spans, kept))


def _reopen(slots: SequenceSlots) -> None:
    """Where every group ends in a cut page, go on inside that page, as a sequence would that never was longer."""
    tail = slots.tail
    lasts = [_cut_page(slots, group.layers) for group in tail.groups]
    rows = {0 if last is None else last.tokens for last in lasts}
    if None in lasts or len(rows) != 1:
        return
    for group, pages, last in zip(tail.groups, tail.pages, lasts, strict=True):
        if last is not None:
            pages[0].copy_from(last.segment)
            for layer in group.layers:
                slots.spans.take(layer)
            last.segment.release(len(group.layers))
    tail.rows = rows.pop()


def _cut_page(slots: SequenceSlots, layers: tuple[int, ...]) -> Span | None:
    """The partly used page of the sequence's own format that all `layers` end in, None where there is none."""
    if any(not slots.spans[layer] for layer in layers):
        return None
    last = slots.spans[layers[0]][-1]
    segment = last.segment
    if any(slots.spans[layer][-1].segment is not segment for layer in layers):
        return None
    plain = segment.format == slots.model.format and segment.bias is None and segment.first_keys is None
    return last if plain and segment.layers == layers and last.tokens < PAGE else None
