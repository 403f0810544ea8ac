"""The sealed slots of one sequence: a list of spans a layer, and the one place that changes those lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from thrifty.arrays import Integers
from thrifty.cache.slots.builder import release_all
from thrifty.cache.slots.places import Places, places
from thrifty.cache.slots.reading import Selection
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span


class SealedSpans:
    """Spans by layer, in the order in which rows attend to them; shared spans are one object. A list owns one reference
    a span.

    let_go: by layer, how many spans there were before those: native attention splits counting from the first that ever
    was. selected: by layer what is attended to, one selection a KV head; a layer that is not in it is seen whole.
    """

    def __init__(self, kv_heads: Sequence[int]) -> None:
        """kv_heads: of each layer."""
        layers = len(kv_heads)
        self.let_go = [0] * layers
        self.selected: dict[int, list[Selection]] = {}
        self._heads = [range(count) for count in kv_heads]
        self._layers: list[list[Span]] = [[] for _ in range(layers)]

    def __getitem__(self, layer: int) -> Sequence[Span]:
        """A layer's spans, to be read."""
        return self._layers[layer]

    def __iter__(self) -> Iterator[Sequence[Span]]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    # --- what they hold ------------------------------------------------------------------------------

    def counts(self, layer: int) -> list[int]:
        """Slots of each KV head, holes left out."""
        return [sum(span.count(layer, head) for span in self._layers[layer]) for head in self._heads[layer]]

    def place_counts(self, layer: int) -> list[int]:
        """Places of each KV head, holes counted."""
        spans = self._layers[layer]
        return [sum(span.tokens for span in spans if span.holds(head)) for head in self._heads[layer]]

    def places(self, layer: int) -> Places | None:
        """Where a layer's slots lie among its places, holes counted; None where it has no holes."""
        return places(self._layers[layer], layer, len(self._heads[layer]))

    def segments(self) -> dict[int, Segment]:
        """Every segment, once, by its id."""
        return {id(span.segment): span.segment for spans in self._layers for span in spans}

    # --- what changes them ---------------------------------------------------------------------------

    def add(self, layer: int, *spans: Span) -> None:
        """Spans behind a layer's last, with a reference each."""
        self._layers[layer] += spans

    def replace(self, layer: int, spans: Sequence[Span]) -> None:
        """A layer's new spans, with their references; those of the old ones are the caller's."""
        self._layers[layer] = list(spans)

    def exchange(self, layer: int, place: int, span: Span) -> None:
        """One span in the place of another, whose reference is the caller's."""
        self._layers[layer][place] = span

    def take(self, layer: int, place: int = -1) -> Span:
        """One span, no longer in the list; its reference is the caller's."""
        return self._layers[layer].pop(place)

    def skip(self, layer: int, count: int) -> None:
        """So many spans of a layer went before they came into the list."""
        self.let_go[layer] += count

    def drop_front(self, layer: int, count: int) -> None:
        """A layer lets its first `count` spans go."""
        spans = self._layers[layer]
        release_all(spans[:count])
        del spans[:count]
        self.let_go[layer] += count

    def select(self, layer: int, indices: Sequence[Integers] | None) -> None:
        """Attend to these slots of a layer (int64, one array a KV head) and to all newer ones; None: to all."""
        if indices is None:
            self.selected.pop(layer, None)
        else:
            counts = self.counts(layer)
            self.selected[layer] = [Selection(slots, count) for slots, count in zip(indices, counts, strict=True)]

    def shorten_selections(self) -> None:
        """Layers lost their newest slots: selections are of what is left."""
        for layer, selections in self.selected.items():
            self.selected[layer] = [
                Selection(own.slots[: own.slots.searchsorted(count)], min(own.count, count))
                for own, count in zip(selections, self.counts(layer), strict=True)
            ]

    def share_from(self, other: SealedSpans) -> None:
        """Hold what another sequence holds, with references of its own: for a fork."""
        self.selected, self.let_go = dict(other.selected), list(other.let_go)
        for own, theirs in zip(self._layers, other, strict=True):
            for span in theirs:
                span.segment.retain()
                own.append(span)

    def clear(self) -> None:
        """Let all spans go."""
        references = Counter(id(span.segment) for spans in self._layers for span in spans)
        for key, segment in self.segments().items():
            segment.release(references[key])
        self._layers = [[] for _ in self._layers]
        self.let_go = [0] * len(self._layers)
