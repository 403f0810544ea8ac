"""Carrying out a policy's edits on a sequence, verb by verb, in the order they were called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Integers
from thrifty.cache.editing import evicting, renumbering, storing
from thrifty.cache.editing.evicting import Substitution
from thrifty.cache.editing.storing import Piece
from thrifty.cache.edits import Drop, Edits, Keep, Merge, Move, Operation, Renumber, Select, Share, Store
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.errors import RecipeError

if TYPE_CHECKING:
    from thrifty.cache.slots.sequence_slots import SequenceSlots
    from thrifty.cache.watching.collector import Collector


def apply_edits(slots: SequenceSlots, collector: Collector, edits: Edits, layers: tuple[int, ...]) -> None:
    """Change the sealed slots of `layers`, and what `collector` holds of them. Slots are counted over sealed slots: the
    open tail is not touched.

    Raises RecipeError where an edit names slots that do not exist or cannot be done on their format.
    """
    with slots.tiers.arena.together():
        for batch in _batches(edits.operations):
            _apply(slots, collector, batch, layers)


def _apply(slots: SequenceSlots, collector: Collector, batch: list[Operation], layers: tuple[int, ...]) -> None:
    first = batch[0]
    if isinstance(first, Keep):
        for layer in _layers(first.layer, layers):
            _keep(slots, collector, layer, first.indices)
    elif isinstance(first, Drop):
        for layer in _layers(first.layer, layers):
            _drop(slots, collector, layer, first.start, first.stop)
    elif isinstance(first, Merge):
        _merge(slots, collector, first.layer, [merge for merge in batch if isinstance(merge, Merge)])
    elif isinstance(first, Store):
        _store(slots, first, [store for store in batch if isinstance(store, Store)], layers)
    elif isinstance(first, Move):
        _move(slots, first, _layers(first.layer, layers))
    elif isinstance(first, Select):
        slots.select(first.layer, first.indices)
    elif isinstance(first, Share):
        _share(slots, collector, first.layer, first.source)
    elif isinstance(first, Renumber):
        for alike in slots.model.alike(_layers(first.layer, layers)):
            _renumber(slots, first, alike)


def _batches(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Neighbouring merges of a layer, and neighbouring stores of the same layer and head, are done at once."""
    batch: list[Operation] = []
    for operation in operations:
        if batch and _joins(batch[-1], operation):
            batch.append(operation)
            continue
        if batch:
            yield batch
        batch = [operation]
    if batch:
        yield batch


def _joins(before: Operation, after: Operation) -> bool:
    if isinstance(before, Merge) and isinstance(after, Merge):
        return before.layer == after.layer and before.head != after.head
    if isinstance(before, Store) and isinstance(after, Store):
        return before.layer == after.layer and before.head == after.head
    return False


def _layers(layer: int | None, layers: tuple[int, ...]) -> tuple[int, ...]:
    return layers if layer is None else (layer,)


def _keep(slots: SequenceSlots, collector: Collector, layer: int, indices: Sequence[Integers]) -> None:
    heads = slots.model.of(layer).kv_heads
    if len(indices) not in (1, heads):
        raise RecipeError(
            f"a technique kept slots of {len(indices)} heads; the layer has {heads}: give one index list, or one a head"
        )
    per_head = list(indices) if len(indices) == heads else list(indices) * heads
    counts = slots.sealed_counts(layer)
    for head, (chosen, count) in enumerate(zip(per_head, counts, strict=True)):
        _check_slots(chosen, count, f"layer {layer}, head {head}")
    evicts = any(len(chosen) < count for chosen, count in zip(per_head, counts, strict=True))
    together, before = evicts and collector.prefilling, slots.places(layer)
    slots.replace_spans(layer, evicting.keep(slots.builder, layer, slots.spans[layer], per_head, together=together))
    collector.keep(layer, per_head, counts, before, slots.places(layer))


def _drop(slots: SequenceSlots, collector: Collector, layer: int, start: int, stop: int) -> None:
    """Let go of whole spans where the range is made of them, else keep the rest slot by slot."""
    spans, heads = slots.spans[layer], slots.model.of(layer).kv_heads
    kept: list[Span] = []
    gone: list[Span] = []
    first = 0
    for span in spans:
        inside = start <= first and first + span.tokens <= stop
        outside = first + span.tokens <= start or first >= stop
        if len(span.segment.heads) != heads or span.segment.holes or not (inside or outside):
            break
        (gone if inside else kept).append(span)
        first += span.tokens
    if len(kept) + len(gone) < len(spans) or layer in collector.layers_with_sums:
        _keep(slots, collector, layer, [_all_but(start, stop, count) for count in slots.sealed_counts(layer)])
        return
    slots.replace_spans(layer, kept)
    for span in gone:
        span.segment.release()
    if collector.wanted.tokens:
        collector.keep(layer, [_all_but(start, stop, first)] * heads, [first] * heads)


def _all_but(start: int, stop: int, count: int) -> Integers:
    """int64: the slots of 0..count without start..stop."""
    return np.concatenate((np.arange(start), np.arange(stop, count)))


def _check_slots(indices: Integers, count: int, where: str) -> None:
    if indices.dtype != np.int64 or indices.ndim != 1:
        raise RecipeError(f"{where}: slots must be a flat int64 array, found {indices.dtype} {indices.shape}")
    if len(indices) and (indices[0] < 0 or indices[-1] >= count or (indices[1:] <= indices[:-1]).any()):
        raise RecipeError(f"{where}: slots must be sorted, unique and below {count}")


def _merge(slots: SequenceSlots, collector: Collector, layer: int, merges: list[Merge]) -> None:
    counts = slots.sealed_counts(layer)
    indices = [np.arange(count) for count in counts]
    changes: dict[int, Substitution] = {}
    for merge in merges:
        if not len(merge.groups):
            continue
        members, anchors = merge.groups.members, merge.groups.firsts
        _check_slots(np.sort(members), counts[merge.head], f"layer {layer}, head {merge.head}")
        kept = np.ones(counts[merge.head], np.bool_)
        kept[members] = False
        kept[anchors] = True
        indices[merge.head] = np.flatnonzero(kept)
        order = anchors.argsort()
        bias = None if merge.bias is None else merge.bias[order]
        changes[merge.head] = Substitution(anchors[order], merge.keys[order], merge.values[order], bias)
    if not changes:
        return
    together, before = collector.prefilling, slots.places(layer)
    spans = evicting.keep(slots.builder, layer, slots.spans[layer], indices, changes, together=together)
    slots.replace_spans(layer, spans)
    for merge in merges:
        collector.merge(layer, merge.head, merge.groups, before)
    collector.keep(layer, indices, counts, before, slots.places(layer))


def _store(slots: SequenceSlots, first: Store, stores: list[Store], layers: tuple[int, ...]) -> None:
    pieces = [Piece(store.start, store.stop, store.format) for store in stores]
    for alike in slots.model.alike(_layers(first.layer, layers)):
        left = pieces
        if first.layer is None and first.head is None:
            left = [piece for piece in pieces if not _store_shared(slots, piece, alike)]
        for layer in alike if left else ():
            heads = range(slots.model.of(layer).kv_heads) if first.head is None else [first.head]
            slots.replace_spans(layer, storing.store(slots.builder, layer, slots.spans[layer], left, heads))


def _store_shared(slots: SequenceSlots, piece: Piece, layers: tuple[int, ...]) -> bool:
    """Convert one page of all layers at once, where the piece (counted from the end) is exactly such a page."""
    if piece.start >= 0 or piece.format == "":
        return False
    place = _page_from_end(slots, piece, layers)
    if place is None:
        return False
    old = slots.spans[layers[0]][place]
    if old.segment.format == piece.format:
        return True
    new = slots.builder.convert(old, piece.format)
    new.segment.retain(len(layers) - 1)
    for layer in layers:
        slots.exchange_span(layer, place, new)
    old.segment.release(len(layers))
    return True


def _page_from_end(slots: SequenceSlots, piece: Piece, layers: tuple[int, ...]) -> int | None:
    """The place, counted from the end of each list, of the one span of all `layers` that the piece covers exactly."""
    lists = [slots.spans[layer] for layer in layers]
    after = 0
    for back in range(1, min(len(spans) for spans in lists) + 1):
        span = lists[0][-back]
        everywhere = span.segment.layers == layers and len(span.segment.heads) == slots.model.of(layers[0]).kv_heads
        if not everywhere or span.segment.holes or any(spans[-back] is not span for spans in lists):
            return None
        stop = 0 if piece.stop is None else -piece.stop
        if stop == after and -piece.start == after + span.tokens:
            return -back
        after += span.tokens
        if after >= -piece.start:
            return None
    return None


def _move(slots: SequenceSlots, move: Move, layers: tuple[int, ...]) -> None:
    counts = {layer: slots.sealed_counts(layer) for layer in layers}
    done: set[int] = set()
    for layer in layers:
        first = [0] * slots.model.of(layer).kv_heads
        spans = list(slots.spans[layer])
        for index, span in enumerate(spans):
            head = span.segment.heads[0]
            start, stop = Piece(move.start, move.stop, "").resolve(counts[layer][head])
            here = first[head]
            for each in span.segment.heads:
                first[each] += span.count(layer, each)
            if here < start or first[head] > stop or id(span.segment.owner) in done:
                continue
            if span.segment.tier == move.tier:
                continue
            if move.tier == "memory":
                span.segment.owner.to_memory()
                continue
            if not _alone(slots, span.segment, layers):
                spans[index] = span = slots.builder.private(layer, span)
            span.segment.owner.to_disk()
            done.add(id(span.segment.owner))
        slots.replace_spans(layer, spans)


def _alone(slots: SequenceSlots, segment: Segment, layers: tuple[int, ...]) -> bool:
    """Whether only these layers of this sequence hold the segment, so that it may move as it is."""
    if segment.parent is not None and segment.parent.references > 1:
        return False
    held = sum(span.segment is segment for layer in layers for span in slots.spans[layer])
    return segment.references == held


def _share(slots: SequenceSlots, collector: Collector, layer: int, source: int) -> None:
    if slots.model.of(layer) != slots.model.of(source):
        raise RecipeError(f"layer {layer} cannot share the cache of layer {source}: its heads or head_dim are others")
    taken = [Span(span.segment.retain(), span.tokens, span.layer(source)) for span in slots.spans[source]]
    old = slots.spans[layer]
    slots.replace_spans(layer, taken)
    collector.share(layer, source)
    for span in old:
        span.segment.release()


def _renumber(slots: SequenceSlots, edit: Renumber, layers: tuple[int, ...]) -> None:
    """Turn the keys of all layers into one new segment where each begins with a span of just these slots."""
    firsts = [slots.spans[layer][0] for layer in layers if slots.spans[layer]]
    alike = (
        len(firsts) == len(layers) > 1
        and edit.start == 0
        and all(span.tokens == edit.stop and span.segment.parent is None for span in firsts)
        and len({(span.segment.format, span.segment.heads, span.segment.capacity) for span in firsts}) == 1
        and len(firsts[0].segment.heads) == slots.model.of(layers[0]).kv_heads
    )
    if not alike:
        for layer in layers:
            spans = renumbering.renumber(
                slots.builder, layer, slots.spans[layer], edit.start, edit.stop, edit.positions
            )
            slots.replace_spans(layer, spans)
        return
    new = renumbering.turn(slots.builder, layers, firsts, edit.positions)
    new.segment.retain(len(layers) - 1)
    for layer, old in zip(layers, firsts, strict=True):
        slots.replace_spans(layer, [new, *slots.spans[layer][1:]])
        old.segment.release()
