"""Carrying out edits on the spans of one layer: every function takes a list of spans and returns the new one.

A list owns one reference a span. What stays whole is passed on, what goes is released, the rest is copied into new
segments: exact slots are gathered; slots of quantised segments are never requantised by an eviction, they become holes
(logit bias −inf) until their whole page of 64 goes, which is then compacted byte for byte. Pages with a few slots left
are not packed together: 32 keys share one scale and minimum a channel, so that a key among others is other numbers
unless all are rounded anew. (Values have scales of their own and could move, but lie in one slab with their keys.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thrifty.cache.policy import ModelInfo
from thrifty.cache.rotation import rotate_again
from thrifty.cache.segment import Segment, Span, bias_row
from thrifty.cache.tiers import Tiers
from thrifty.errors import RecipeError
from thrifty.formats import kv, kv_batch
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch
from thrifty.storage.ledger import Reservation

QUANTISED_MERGE = (
    "slots that are already quantised cannot be merged: put the merging technique before the quantising one"
)


@dataclass(frozen=True)
class Substitution:
    """Slots of one head that get new contents: slots int64 [m] sorted, keys, values fp32 [m, d], bias fp32 [m] or
    None.
    """

    slots: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Piece:
    """Slots start..stop of every head (negative: from its end, None: its end) to hold as `format`, "" for as it is."""

    start: int
    stop: int | None
    format: str

    def resolve(self, count: int) -> tuple[int, int]:
        """start and stop of a head with `count` slots."""
        start = self.start + count if self.start < 0 else self.start
        stop = count if self.stop is None else self.stop + count if self.stop < 0 else self.stop
        return max(0, min(start, count)), max(0, min(stop, count))


@dataclass
class _Part:
    """A span of which some slots go into a new segment. chosen: by head, int64 slots inside the span; first: by head,
    the layer's slot number of the span's first."""

    span: Span
    chosen: dict[int, Tensor]
    first: dict[int, int] = field(default_factory=dict)


class Editor:
    """Edits one sequence's layers. Raises BudgetError where new segments do not fit; the layer is then unchanged."""

    def __init__(self, tiers: Tiers, model: ModelInfo, reservation: Reservation | None) -> None:
        self.tiers = tiers
        self.model = model
        self.reservation = reservation

    def new(self, layers: tuple[int, ...], heads: tuple[int, ...], tokens: int, format: str) -> Segment:
        """An empty segment for `tokens` slots."""
        capacity = -(-max(tokens, 1) // PAGE) * PAGE
        segment = Segment(
            self.tiers, layers, heads, capacity, format, self.model.head_dim, reservation=self.reservation
        )
        segment.tokens = tokens
        return segment

    def keep(
        self,
        layer: int,
        spans: Sequence[Span],
        indices: Sequence[Tensor],
        substitutions: dict[int, Substitution] | None = None,
        *,
        together: bool = False,
    ) -> list[Span]:
        """Evict all slots but `indices[head]`; where given, exchange the contents of some that stay.

        together: what stays of spans in full precision becomes one, whole spans included, so that a prompt that a
        prefix hit brought in pages is left as one that came in a piece.
        """
        changes = substitutions or {}
        first = [0] * self.model.kv_heads
        dropped: list[Span] = []
        batch: list[_Part] = []
        with _Made(spans) as result:
            for span in spans:
                part = _Part(span, {}, {})
                whole, empty = True, True
                for head in span.segment.heads:
                    count = span.count(layer, head)
                    part.first[head] = first[head]
                    chosen = _inside(indices[head], first[head], first[head] + count)
                    part.chosen[head] = chosen
                    changed = (
                        head in changes and len(_inside(changes[head].slots, first[head], first[head] + count)) > 0
                    )
                    whole &= len(chosen) == count and not changed
                    empty &= len(chosen) == 0
                    if changed and span.segment.quantised:
                        raise RecipeError(QUANTISED_MERGE)
                    first[head] += count
                stays = whole and (not together or span.segment.quantised)
                if not stays:
                    dropped.append(span)
                if empty:
                    continue
                if stays or span.segment.quantised:
                    result += self._gather(layer, batch, changes)
                    batch = []
                    result += [span] if stays else self._punch(layer, span, part.chosen)
                else:
                    batch.append(part)
            result += self._gather(layer, batch, changes)
        _release(dropped)
        return result

    def store(self, layer: int, spans: Sequence[Span], pieces: Sequence[Piece], heads: Sequence[int]) -> list[Span]:
        """Cut spans at the borders of `pieces` (for these heads) and hold what is inside in the pieces' formats."""
        counts = [sum(span.count(layer, head) for span in spans) for head in range(self.model.kv_heads)]
        ranges = {head: [(*piece.resolve(counts[head]), piece.format) for piece in pieces] for head in heads}
        first = [0] * self.model.kv_heads
        dropped: list[Span] = []
        with _Made(spans) as result:
            for span in spans:
                cuts = {}
                for head in span.segment.heads:
                    count = span.count(layer, head)
                    cuts[head] = _cut(ranges.get(head, []), first[head], count)
                    first[head] += count
                if all(_untouched(span, cut) for cut in cuts.values()):
                    result.append(span)
                    continue
                alike = all(cut == next(iter(cuts.values())) for cut in cuts.values())
                if span.segment.parent is not None:
                    raise RecipeError("slots of a quantised segment with evicted slots cannot be stored again")
                groups = [tuple(cuts)] if alike else [(head,) for head in cuts]
                for group in groups:
                    for start, stop, format in cuts[group[0]]:
                        result.append(self._copy(span, (layer,), group, start, stop, format or span.segment.format))
                dropped.append(span)
        _release(dropped)
        return result

    def convert(self, span: Span, format: str) -> Span:
        """A whole span of many layers in another format, as one new segment of the same layers and heads.

        The caller keeps the old references; the new segment has one.
        """
        return self._copy(span, span.segment.layers, span.segment.heads, 0, span.tokens, format)

    def renumber(self, layer: int, spans: Sequence[Span], start: int, stop: int, positions: Tensor) -> list[Span]:
        """Rotate the keys of slots start..stop (the same for every head) to `positions` int64 [stop-start]."""
        cut = self.store(layer, spans, [Piece(start, stop, "")], range(self.model.kv_heads))
        first = [0] * self.model.kv_heads
        result = []
        for span in cut:
            here = first[span.segment.heads[0]]
            for head in span.segment.heads:
                first[head] += span.count(layer, head)
            if here < start or here + span.tokens > stop or not span.tokens:
                result.append(span)
                continue
            result.append(self.turn((layer,), [span], positions[here - start : here - start + span.tokens]))
            span.segment.release()
        return result

    def turn(self, layers: tuple[int, ...], spans: Sequence[Span], positions: Tensor) -> Span:
        """One span a layer, alike but for their contents, as one new segment with keys rotated to `positions`.

        Always from the keys that were first written, so that turning often is as exact as turning once. The spans keep
        their references.
        """
        heads, tokens, format = spans[0].segment.heads, spans[0].tokens, spans[0].segment.format
        new = self.new(layers, heads, tokens, format)
        try:
            target = new.slabs()
            turned, first = [], []
            for row, (layer, span) in enumerate(zip(layers, spans, strict=True)):
                keys, before = _first_keys(span, span.layer(layer))
                first.append(keys)
                turned.append(rotate_again(self.model, layer, keys, before, positions))
                part = target[row * len(heads) : (row + 1) * len(heads)]
                old = span.segment
                slabs = old.slabs([span.layer(layer)])
                kv_batch.copy_pages(slabs, part, format, old.capacity, new.capacity, old.head_dim, 0)
                if old.bias is not None:
                    for head in heads:
                        new.set_bias(layer, head, bias_row(old, old.bias, span.layer(layer), head)[:tokens])
            self._write_keys(new, torch.cat(turned))
            new.set_positions([positions] * len(heads))
            new.set_first_keys(torch.stack(first), before)
        except BaseException:
            new.release()
            raise
        return Span(new, tokens)

    def _write_keys(self, new: Segment, keys: Tensor) -> None:
        """Overwrite the keys [layers·heads, tokens, d] of all slots."""
        if not new.quantised:
            held, _ = kv_batch.plain(new.slabs(), new.format, new.capacity, new.head_dim)
            for start in range(0, new.tokens, PAGE):
                part = keys[:, start : start + PAGE].transpose(1, 2)
                held[:, start // PAGE, :, : part.shape[2]] = part.to(held.dtype)
            return
        for layer in new.layers:
            for head in new.heads:
                row = new.layers.index(layer) * len(new.heads) + new.heads.index(head)
                values = new.read(layer, head)[1]
                new.write(layer, head, 0, keys[row], values)

    def pages(self, layer: int, span: Span, first: int) -> list[Span]:
        """Slots from `first` of a span as segments of one page each; consumes the span's reference."""
        heads = span.segment.heads
        with _Made([]) as result:
            for start in range(first, span.tokens, PAGE):
                stop = min(start + PAGE, span.tokens)
                result.append(self._copy(span, (layer,), heads, start, stop, span.segment.format))
        span.segment.release()
        return result

    def private(self, layer: int, span: Span) -> Span:
        """A span on a segment of this layer alone, copied byte for byte where others hold it too; consumes a
        reference.
        """
        if span.segment.owner.references == 1 and span.segment.layers == (layer,):
            return span
        copy = self._copy(span, (span.layer(layer),), span.segment.heads, 0, span.tokens, span.segment.format)
        span.segment.release()
        return copy if span.source is None else Span(copy.segment, copy.tokens, span.source)

    def _gather(self, layer: int, parts: list[_Part], changes: dict[int, Substitution]) -> list[Span]:
        """New segments of the chosen slots: one for all heads where they are as many, else one a head."""
        if not parts:
            return []
        heads = sorted({head for part in parts for head in part.chosen})
        counts = {head: sum(len(part.chosen.get(head, ())) for part in parts) for head in heads}
        format = "f32" if any(part.span.segment.format == "f32" for part in parts) else parts[0].span.segment.format
        alike = len(heads) == self.model.kv_heads and len(set(counts.values())) == 1
        groups = [tuple(heads)] if alike else [(head,) for head in heads if counts[head]]
        made: list[Span] = []
        try:
            for group in groups:
                segment = self.new((layer,), group, counts[group[0]], format)
                made.append(Span(segment, segment.tokens))
                moved = not changes and _moved(segment, layer, parts)
                segment.set_positions(
                    [self._fill(segment, layer, head, parts, changes.get(head), moved) for head in group]
                )
        except BaseException:
            _release(made)
            raise
        return made

    def _fill(
        self, segment: Segment, layer: int, head: int, parts: list[_Part], change: Substitution | None, moved: bool
    ) -> Tensor:
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
                    keys, values = keys.float(), values.float()
                    bias = _substitute(keys, values, bias, chosen + part.first[head], change)
                segment.write(layer, head, start, keys, values)
            if bias is not None:
                whole = torch.zeros(start + len(bias))
                if segment.bias is not None:
                    whole[:start] = segment.bias[0, segment.heads.index(head), :start]
                whole[start:] = bias
                segment.set_bias(layer, head, whole)
            positions.append(part.span.segment.positions_of(head, part.span.tokens)[chosen])
            start += len(chosen)
        return torch.cat(positions)

    def _punch(self, layer: int, span: Span, chosen: dict[int, Tensor]) -> list[Span]:
        """Evict slots of a quantised span: drop its empty pages, hide the other evicted slots."""
        source = span.layer(layer)
        live = []
        for head in span.segment.heads:
            before = span.live(layer, head)
            live.append(chosen[head] if before is None else before[chosen[head]])
        pages = -(-span.tokens // PAGE)
        used = sorted({int(page) for slots in live for page in torch.unique(slots // PAGE)})
        if len(used) == pages:
            face = span.segment.with_holes(source, live, span.tokens)
            return [Span(face, span.tokens, span.source)]
        compact = self._copy_pages(span, source, used)
        place = torch.full((pages,), -1, dtype=torch.int64)
        place[torch.tensor(used)] = torch.arange(len(used))
        moved = [place[slots // PAGE] * PAGE + slots % PAGE for slots in live]
        if all(len(slots) == compact.tokens for slots in moved):
            return [Span(compact, compact.tokens, span.source)]
        face = compact.with_holes(source, moved, compact.tokens)
        compact.release()
        return [Span(face, face.tokens, span.source)]

    def _copy_pages(self, span: Span, layer: int, pages: list[int]) -> Segment:
        """The given pages of a span, byte for byte."""
        old = span.segment
        tokens = sum(min(PAGE, span.tokens - page * PAGE) for page in pages)
        new = self.new((layer,), old.heads, tokens, old.format)
        one = torch.zeros(len(old.heads), kv.slab_bytes(old.format, PAGE, old.head_dim), dtype=torch.uint8)
        slabs, target = old.slabs([layer]), new.slabs()
        for place, page in enumerate(pages):
            kv_batch.copy_pages(slabs, one, old.format, old.capacity, PAGE, old.head_dim, page)
            kv_batch.place_page(one, target, old.format, new.capacity, old.head_dim, place)
        slots = torch.cat([torch.arange(page * PAGE, min((page + 1) * PAGE, span.tokens)) for page in pages])
        new.set_positions([old.positions_of(head)[slots] for head in old.heads])
        if old.bias is not None:
            for row, head in enumerate(old.heads):
                new.set_bias(layer, head, old.bias[old.layers.index(layer), row, slots])
        return new

    def _copy(
        self, span: Span, layers: tuple[int, ...], heads: tuple[int, ...], start: int, stop: int, format: str
    ) -> Span:
        """Slots start..stop of some layers and heads as a new segment in `format`: bytes where they can stay as they
        are.
        """
        old = span.segment
        new = self.new(layers, heads, stop - start, format)
        try:
            self._copy_slots(span, new, start)
            if isinstance(old.positions, int):
                new.positions = old.positions + start
            else:
                new.set_positions([old.positions_of(head, stop)[start:] for head in heads])
            if old.bias is not None:
                self._copy_bias(span, new, old.bias, start)
            if old.first_keys is not None and start == 0 and stop == span.tokens:
                rows = [old.heads.index(head) for head in heads]
                here = [old.layers.index(span.layer(layer)) for layer in layers]
                new.set_first_keys(old.first_keys[0][here][:, rows, :stop], old.first_keys[1][:stop])
        except BaseException:
            new.release()
            raise
        return Span(new, new.tokens)

    @staticmethod
    def _copy_bias(span: Span, new: Segment, bias: Tensor, start: int) -> None:
        for layer in new.layers:
            for head in new.heads:
                row = bias_row(span.segment, bias, span.layer(layer), head)
                new.set_bias(layer, head, row[start : start + new.tokens])

    def _copy_slots(self, span: Span, new: Segment, start: int) -> None:
        """The numbers of as many slots as `new` holds."""
        old, tokens = span.segment, new.tokens
        sources = [span.layer(layer) for layer in new.layers]
        aligned = start % PAGE == 0
        if not (aligned and (old.format == new.format or not old.quantised)) and (old.quantised or new.quantised):
            for layer, source in zip(new.layers, sources, strict=True):
                for head in new.heads:
                    slab = old.slab(source, head)
                    keys, values = kv.read(old.format, slab, old.capacity, old.head_dim, start, tokens)
                    new.write(layer, head, 0, keys, values)
            return
        slabs, target, dim = old.slabs(sources, new.heads), new.slabs(), old.head_dim
        if aligned and old.format == new.format:
            kv_batch.copy_pages(slabs, target, old.format, old.capacity, new.capacity, dim, start // PAGE)
            return
        shapes = (slabs, old.format, old.capacity, target, new.format, new.capacity, dim)
        if new.quantised:
            kv_batch.quantise(*shapes, start // PAGE, tokens)
        else:
            kv_batch.copy_tokens(*shapes, start, tokens)


def _first_keys(span: Span, source: int) -> tuple[Tensor, Tensor]:
    """Keys [heads, tokens, d] fp32 of a layer as they were first written, and their positions."""
    old = span.segment
    if old.first_keys is not None:
        return old.first_keys[0][old.layers.index(source), :, : span.tokens], old.first_keys[1][: span.tokens]
    keys = torch.stack([old.read(source, head, span.tokens)[0] for head in old.heads])
    return keys, old.positions_of(old.heads[0], span.tokens)


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


def _chosen(span: Span, layer: int, head: int, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Some slots of one head of a full-precision span, in its own dtype: keys, values [n, d]."""
    segment = span.segment
    slab = segment.slab(span.layer(layer), head)[None]
    keys, values = kv_batch.plain(slab, segment.format, segment.capacity, segment.head_dim)
    return keys[0].transpose(1, 2).flatten(0, 1)[slots], values[0][slots]


def _chosen_bias(span: Span, layer: int, head: int, slots: Tensor) -> Tensor | None:
    """Logit biases fp32 [n] of some slots of one head, None where the span has none."""
    segment = span.segment
    return None if segment.bias is None else bias_row(segment, segment.bias, span.layer(layer), head)[slots]


def _inside(indices: Tensor, first: int, stop: int) -> Tensor:
    """The sorted indices in first..stop, counted from first."""
    low, high = torch.searchsorted(indices, torch.tensor([first, stop])).tolist()
    return indices[low:high] - first


def _substitute(
    keys: Tensor, values: Tensor, bias: Tensor | None, slots: Tensor, change: Substitution
) -> Tensor | None:
    """Overwrite in place the rows of `slots` that the substitution names; returns the new bias."""
    place = torch.searchsorted(slots, change.slots)
    found = place < len(slots)
    found[found.clone()] = slots[place[found]] == change.slots[found]
    rows = place[found]
    keys[rows], values[rows] = change.keys[found], change.values[found]
    if bias is None and change.bias is None:
        return None
    bias = torch.zeros(len(slots)) if bias is None else bias
    bias[rows] = 0.0 if change.bias is None else change.bias[found]
    return bias


def _cut(ranges: list[tuple[int, int, str]], first: int, count: int) -> list[tuple[int, int, str | None]]:
    """The parts of a span of `count` slots from `first`: (start, stop, format), None where no piece lies."""
    parts: list[tuple[int, int, str | None]] = []
    done = 0
    for start, stop, format in sorted(ranges):
        start, stop = max(start - first, done), min(stop - first, count)
        if start >= stop:
            continue
        if start > done:
            parts.append((done, start, None))
        parts.append((start, stop, format))
        done = stop
    if done < count:
        parts.append((done, count, None))
    return parts


def _untouched(span: Span, parts: list[tuple[int, int, str | None]]) -> bool:
    """Whether cutting changes nothing: one part, in the format that it has."""
    return len(parts) <= 1 and all(format in (None, "", span.segment.format) for _, _, format in parts)


class _Made:
    """A growing list of spans; where an error interrupts, those that are not in `old` are released."""

    def __init__(self, old: Sequence[Span]) -> None:
        self._old = {id(span) for span in old}
        self._made: list[Span] = []

    def __enter__(self) -> list[Span]:
        return self._made

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            _release([span for span in self._made if id(span) not in self._old])


def _release(spans: list[Span]) -> None:
    for span in spans:
        span.segment.release()
