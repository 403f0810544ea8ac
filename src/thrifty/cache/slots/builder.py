"""New segments of one sequence, and copies of slots into them: bytes where they can stay as they are.

What edits a layer (`evicting`, `storing`, `renumbering`) takes a list of spans and returns the new one. A list owns one
reference a span: what stays whole is passed on, what goes is released, the rest is copied into new segments. Where new
segments do not fit, BudgetError leaves the layer unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.tiers import Tiers
from thrifty.formats import kv, kv_batch
from thrifty.formats.kv import PAGE
from thrifty.storage.ledger import Reservation


class Builder:
    """Makes segments from a sequence's promised bytes. Raises BudgetError where they do not fit."""

    def __init__(self, tiers: Tiers, model: ModelInfo, reservation: Reservation | None) -> None:
        self.tiers = tiers
        self.model = model
        self.reservation = reservation

    def new(self, layers: tuple[int, ...], heads: tuple[int, ...], tokens: int, format: str) -> Segment:
        """An empty segment for `tokens` slots."""
        capacity = -(-max(tokens, 1) // PAGE) * PAGE
        head_dim = self.model.of(layers[0]).head_dim
        segment = Segment(self.tiers, layers, heads, capacity, format, head_dim, reservation=self.reservation)
        segment.tokens = tokens
        return segment

    def convert(self, span: Span, format: str) -> Span:
        """A whole span of many layers in another format, as one new segment of the same layers and heads.

        The caller keeps the old references; the new segment has one.
        """
        return self.copy(span, span.segment.layers, span.segment.heads, 0, span.tokens, format)

    def pages(self, layer: int, span: Span, first: int) -> list[Span]:
        """Slots from `first` of a span as segments of one page each; consumes the span's reference."""
        heads = span.segment.heads
        with NewSpans([]) as result:
            for start in range(first, span.tokens, PAGE):
                stop = min(start + PAGE, span.tokens)
                result.append(self.copy(span, (layer,), heads, start, stop, span.segment.format))
        span.segment.release()
        return result

    def private(self, layer: int, span: Span) -> Span:
        """A span on a segment of this layer alone, copied byte for byte where others hold it too; consumes a
        reference.
        """
        alone = span.segment.references == span.segment.owner.references == 1
        if alone and span.segment.layers == (layer,):
            return span
        source, heads = span.layer(layer), span.segment.heads
        copy = self.copy(span, (source,), heads, 0, span.tokens, span.segment.format).segment
        if span.segment.holes:
            live = [span.live(layer, head) for head in heads]
            try:
                face = copy.with_holes(source, [slots for slots in live if slots is not None], span.tokens)
            finally:
                copy.release()
            copy = face
        span.segment.release()
        return Span(copy, span.tokens, span.source)

    def copy(
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
                self._copy_bias(span, new, start)
            if old.first_keys is not None and start == 0 and stop == span.tokens:
                rows = [old.heads.index(head) for head in heads]
                here = [old.layers.index(span.layer(layer)) for layer in layers]
                new.set_first_keys(old.first_keys[0][here][:, rows, :stop], old.first_keys[1][:stop])
        except BaseException:
            new.release()
            raise
        return Span(new, new.tokens)

    @staticmethod
    def _copy_bias(span: Span, new: Segment, start: int) -> None:
        for layer in new.layers:
            for head in new.heads:
                new.set_bias(layer, head, span.bias(layer, head)[start : start + new.tokens])

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


class NewSpans:
    """A growing list of spans; where an error interrupts, those that are not in `old` are released."""

    def __init__(self, old: Sequence[Span]) -> None:
        self._old = {id(span) for span in old}
        self._made: list[Span] = []

    def __enter__(self) -> list[Span]:
        return self._made

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            release_all([span for span in self._made if id(span) not in self._old])


def release_all(spans: Sequence[Span]) -> None:
    """Give up one reference a span."""
    for span in spans:
        span.segment.release()
