"""Evicting slots, and merging: some slots stay, some with new contents, the rest go.

Exact slots are gathered into new segments. Slots of quantised segments are never requantised by an eviction: they
become holes (logit bias −inf) until their whole page of 64 goes, which is then compacted byte for byte. Pages with a
few slots left are not packed together: 32 keys share one scale and minimum a channel, so that a key among others is
other numbers unless all are rounded anew. (Values have scales of their own and could move, but lie in one slab with
their keys.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.cache.slots.builder import Builder, NewSpans, release_all
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.errors import RecipeError
from thrifty.formats import kv, kv_batch
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch

QUANTISED_MERGE = (
    "slots that are already quantised cannot be merged: put the merging technique before the quantising one"
)


@dataclass(frozen=True)
class Substitution:
    """Slots of one head that get new contents: slots int64 [m] sorted, keys, values fp32 [m, d], bias fp32 [m] or
    None.
    """

    slots: Integers
    keys: Floats
    values: Floats
    bias: Floats | None


@dataclass
class _Part:
    """A span of which some slots stay. By head: chosen, int64 slots inside the span; first, the layer's slot number of
    the span's first; counts, its slots."""

    span: Span
    chosen: dict[int, Integers]
    first: dict[int, int]
    counts: dict[int, int]

    @property
    def whole(self) -> bool:
        """Whether every slot stays."""
        return all(len(self.chosen[head]) == count for head, count in self.counts.items())

    @property
    def empty(self) -> bool:
        """Whether none does."""
        return not any(len(chosen) for chosen in self.chosen.values())

    def changed(self, changes: dict[int, Substitution]) -> bool:
        """Whether some slots get new contents."""
        for head in self.counts.keys() & changes.keys():
            edges = (self.first[head], self.first[head] + self.counts[head])
            low, stop = changes[head].slots.searchsorted(edges)
            if low < stop:
                return True
        return False


def keep(
    builder: Builder,
    layer: int,
    spans: Sequence[Span],
    indices: Sequence[Integers],
    substitutions: dict[int, Substitution] | None = None,
    *,
    together: bool = False,
) -> list[Span]:
    """Evict all slots but `indices[head]`; where given, exchange the contents of some that stay.

    together: what stays of spans in full precision becomes one, whole spans included, so that a prompt that a
    prefix hit brought in pages is left as one that came in a piece.
    """
    changes = substitutions or {}
    dropped: list[Span] = []
    batch: list[_Part] = []
    with NewSpans(spans) as result:
        for part in _parts(spans, layer, indices):
            span = part.span
            changed = part.changed(changes)
            if changed and span.segment.quantised:
                raise RecipeError(QUANTISED_MERGE)
            stays = part.whole and not changed and (not together or span.segment.quantised)
            if not stays:
                dropped.append(span)
            if part.empty:
                continue
            if stays or span.segment.quantised:
                result += _gather(builder, layer, batch, changes)
                batch = []
                result += [span] if stays else _punch(builder, layer, span, part.chosen)
            else:
                batch.append(part)
        result += _gather(builder, layer, batch, changes)
    release_all(dropped)
    return result


def _parts(spans: Sequence[Span], layer: int, indices: Sequence[Integers]) -> list[_Part]:
    """What `indices` (sorted slots of each head) choose of every span."""
    parts = [_Part(span, {}, {}, {}) for span in spans]
    for head, chosen in enumerate(indices):
        held = [part for part in parts if part.span.holds(head)]
        if not held:
            continue
        first = 0
        for part in held:
            part.first[head], part.counts[head] = first, part.span.count(layer, head)
            first += part.counts[head]
        edges = chosen.searchsorted([part.first[head] for part in held]).tolist()
        for part, low, stop in zip(held, edges, [*edges[1:], len(chosen)], strict=True):
            part.chosen[head] = chosen[low:stop] - part.first[head]
    return parts


def _gather(builder: Builder, layer: int, parts: list[_Part], changes: dict[int, Substitution]) -> list[Span]:
    """New segments of the chosen slots: one for all heads where they are as many, else one a head."""
    if not parts:
        return []
    heads = sorted({head for part in parts for head in part.chosen})
    counts = {head: sum(len(part.chosen.get(head, ())) for part in parts) for head in heads}
    format = "f32" if any(part.span.segment.format == "f32" for part in parts) else parts[0].span.segment.format
    alike = len(heads) == builder.model.of(layer).kv_heads and len(set(counts.values())) == 1
    groups = [tuple(heads)] if alike else [(head,) for head in heads if counts[head]]
    made: list[Span] = []
    try:
        for group in groups:
            segment = builder.new((layer,), group, counts[group[0]], format)
            made.append(Span(segment, segment.tokens))
            moved = not changes and _moved(segment, layer, parts)
            segment.set_positions([_fill(segment, layer, head, parts, changes.get(head), moved) for head in group])
    except BaseException:
        release_all(made)
        raise
    return made


def _fill(
    segment: Segment, layer: int, head: int, parts: list[_Part], change: Substitution | None, moved: bool
) -> Integers:
    """Write one head's chosen slots; returns their positions. moved: keys and values are there already."""
    start = 0
    positions = []
    for part in parts:
        chosen = part.chosen.get(head)
        if chosen is None or not len(chosen):
            continue
        bias = _chosen_bias(part.span, layer, head, chosen)
        if not moved:
            keys, values = _chosen(part.span, layer, head, chosen)
            if change is not None:
                keys, values = keys.astype(np.float32), values.astype(np.float32)
                bias = _substitute(keys, values, bias, chosen + part.first[head], change)
            segment.write(layer, head, start, keys, values)
        if bias is not None:
            whole = np.zeros(start + len(bias), np.float32)
            if segment.bias is not None:
                whole[:start] = segment.bias[0, segment.heads.index(head), :start]
            whole[start:] = bias
            segment.set_bias(layer, head, whole)
        positions.append(part.span.segment.positions_of(head, part.span.tokens)[chosen])
        start += len(chosen)
    return np.concatenate(positions)


def _punch(builder: Builder, layer: int, span: Span, chosen: dict[int, Integers]) -> list[Span]:
    """Evict slots of a quantised span: drop its empty pages, hide the other evicted slots."""
    source = span.layer(layer)
    live = []
    for head in span.segment.heads:
        before = span.live(layer, head)
        live.append(chosen[head] if before is None else before[chosen[head]])
    pages = -(-span.tokens // PAGE)
    used = np.unique(np.concatenate(live) // PAGE)
    if len(used) == pages:
        face = span.segment.with_holes(source, live, span.tokens)
        return [Span(face, span.tokens, span.source)]
    compact = _copy_pages(builder, span, source, used.tolist())
    place = np.full(pages, -1)
    place[used] = np.arange(len(used))
    moved = [place[slots // PAGE] * PAGE + slots % PAGE for slots in live]
    if all(len(slots) == compact.tokens for slots in moved):
        return [Span(compact, compact.tokens, span.source)]
    face = compact.with_holes(source, moved, compact.tokens)
    compact.release()
    return [Span(face, face.tokens, span.source)]


def _copy_pages(builder: Builder, span: Span, layer: int, pages: list[int]) -> Segment:
    """The given pages of a span, byte for byte."""
    old = span.segment
    tokens = sum(min(PAGE, span.tokens - page * PAGE) for page in pages)
    new = builder.new((layer,), old.heads, tokens, old.format)
    page_bytes = np.zeros((len(old.heads), kv.slab_bytes(old.format, PAGE, old.head_dim)), np.uint8)
    slabs, target = old.slabs([layer]), new.slabs()
    for place, page in enumerate(pages):
        kv_batch.copy_pages(slabs, page_bytes, old.format, old.capacity, PAGE, old.head_dim, page)
        kv_batch.place_page(page_bytes, target, old.format, new.capacity, old.head_dim, place)
    slots = np.concatenate([np.arange(page * PAGE, min((page + 1) * PAGE, span.tokens)) for page in pages])
    new.set_positions([old.positions_of(head)[slots] for head in old.heads])
    if old.bias is not None:
        for row, head in enumerate(old.heads):
            new.set_bias(layer, head, old.bias[old.layers.index(layer), row, slots])
    return new


def _moved(segment: Segment, layer: int, parts: list[_Part]) -> bool:
    """Put the chosen slots of all heads into a new segment by native code; False where it cannot."""
    if any(part.span.segment.format != segment.format for part in parts):
        return False
    heads = []
    for head in segment.heads:
        sources = [
            (part.span.segment.slab(part.span.layer(layer), head), part.span.segment.capacity, part.chosen[head])
            for part in parts
            if len(part.chosen.get(head, ()))
        ]
        heads.append((segment.slab(layer, head), segment.capacity, sources))
    return dispatch.gather(heads, kv.FORMATS.index(segment.format), segment.head_dim)


def _chosen(span: Span, layer: int, head: int, slots: Integers) -> tuple[Array, Array]:
    """Some slots of one head of a full-precision span, in its own dtype: keys, values [n, d]."""
    segment = span.segment
    slab = segment.slab(span.layer(layer), head)[None]
    keys, values = kv_batch.plain(slab, segment.format, segment.capacity, segment.head_dim)
    return keys[0, slots // PAGE, :, slots % PAGE], values[0, slots]


def _chosen_bias(span: Span, layer: int, head: int, slots: Integers) -> Floats | None:
    """Logit biases fp32 [n] of some slots of one head, None where the span has none."""
    segment = span.segment
    return None if segment.bias is None else span.bias(layer, head)[slots]


def _substitute(
    keys: Floats, values: Floats, bias: Floats | None, slots: Integers, change: Substitution
) -> Floats | None:
    """Overwrite in place the rows of `slots` that the substitution names; returns the new bias."""
    place = slots.searchsorted(change.slots)
    named = place < len(slots)
    named[named] = slots[place[named]] == change.slots[named]
    rows = place[named]
    keys[rows], values[rows] = change.keys[named], change.values[named]
    if bias is None and change.bias is None:
        return None
    bias = np.zeros(len(slots), np.float32) if bias is None else bias
    bias[rows] = 0.0 if change.bias is None else change.bias[named]
    return bias
