"""Going back to fewer committed tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thrifty.cache.editing.evicting import keep
from thrifty.cache.slots.reading import Selection
from thrifty.cache.slots.span import Span
from thrifty.cache.view import LayerView
from thrifty.errors import PromptError
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.slots.sequence_slots import SequenceSlots


def roll_back(sequence: SequenceSlots, length: int) -> None:
    """Drop the committed slots of position `length` and beyond, after `check`; what a policy evicted stays evicted."""
    tail = sequence.tail
    if sequence.length - length <= tail.rows:
        tail.rows -= sequence.length - length
    else:
        if not tail.pages[0]:
            tail.open(1, sequence.length)
        tail.rows = 0
        for layer in range(sequence.model.layers):
            _trim(sequence, layer, length)
        _reopen(sequence)
    for layer in sequence.selected:
        _shorten_selection(sequence, layer)
    sequence.length = length
    tail.number(length)


def check(sequence: SequenceSlots, length: int) -> None:
    """Raise PromptError where a windowed layer no longer has what a sequence of `length` tokens needs."""
    if length < 0:
        raise PromptError(f"cannot drop {sequence.length - length} of {sequence.length} tokens")
    for group in sequence.tail.groups:
        if group.window is None:
            continue
        first = _first_position(sequence, group.layers[0])
        if first > max(0, length - group.window + 1):
            raise PromptError(
                f"cannot go back to {length} tokens: layers with a window of {group.window} have let go of tokens that "
                f"the shorter sequence needs; go back to {first + group.window - 1} or more"
            )


def _first_position(sequence: SequenceSlots, layer: int) -> int:
    if not sequence.spans[layer]:
        return sequence.length - sequence.tail.rows
    first = sequence.spans[layer][0].segment.positions
    return first if isinstance(first, int) else int(first.min())


def _trim(sequence: SequenceSlots, layer: int, length: int) -> None:
    spans = sequence.spans[layer]
    ragged = False
    for index in reversed(range(len(spans))):
        span = spans[index]
        counts = {int((span.segment.positions_of(head, span.tokens) < length).sum()) for head in span.segment.heads}
        if counts == {span.tokens}:
            continue
        if len(counts) > 1 or span.segment.holes:
            ragged = True
        elif counts == {0}:
            spans.pop(index).segment.release()
        else:
            spans[index] = Span(span.segment, counts.pop(), span.source)
    if ragged:
        view = LayerView(sequence.model.layer(layer, length), spans)
        heads = range(sequence.model.kv_heads)
        kept = [np.flatnonzero(view.positions(head) < length) for head in heads]
        sequence.spans[layer] = keep(sequence.builder, layer, spans, kept)


def _shorten_selection(sequence: SequenceSlots, layer: int) -> None:
    """What a layer attends to of the slots that are left."""
    counts = sequence.sealed_counts(layer)
    sequence.selected[layer] = [
        Selection(own.slots[: own.slots.searchsorted(count)], min(own.count, count))
        for own, count in zip(sequence.selected[layer], counts, strict=True)
    ]


def _reopen(sequence: SequenceSlots) -> None:
    """Where every group ends in a cut page, go on inside that page, as a sequence would that never was longer."""
    tail = sequence.tail
    lasts = [_cut_page(sequence, group.layers) for group in tail.groups]
    rows = {0 if last is None else last.tokens for last in lasts}
    if None in lasts or len(rows) != 1:
        return
    for group, pages, last in zip(tail.groups, tail.pages, lasts, strict=True):
        if last is not None:
            pages[0].copy_from(last.segment)
            for layer in group.layers:
                sequence.spans[layer].pop()
            last.segment.release(len(group.layers))
    tail.rows = rows.pop()


def _cut_page(sequence: SequenceSlots, layers: tuple[int, ...]) -> Span | None:
    """The partly used page of the sequence's own format that all `layers` end in, None where there is none."""
    if any(not sequence.spans[layer] for layer in layers):
        return None
    last = sequence.spans[layers[0]][-1]
    segment = last.segment
    if any(sequence.spans[layer][-1].segment is not segment for layer in layers):
        return None
    plain = segment.format == sequence.model.format and segment.bias is None and segment.first_keys is None
    return last if plain and segment.layers == layers and last.tokens < PAGE else None
