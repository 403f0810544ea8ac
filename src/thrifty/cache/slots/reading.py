"""What a row of the reference path attends to: the slots of one head, in their order, as fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.slots.segment import Segment, bias_row
from thrifty.formats import kv
from thrifty.formats.kv import PAGE
from thrifty.kernels.reference.attention import Span
from thrifty.kernels.reference.page_bounds import seen_slots

if TYPE_CHECKING:
    from thrifty.cache.page_selection import PageSelection


@dataclass(frozen=True)
class Source:
    """The first `tokens` slots of a segment, read as layer `layer`."""

    segment: Segment
    layer: int
    tokens: int


@dataclass(frozen=True)
class Selection:
    """The slots that one head attends to, of the `count` it had when they were selected, and all newer ones."""

    slots: Integers
    count: int

    def only(self, bias: Floats) -> Floats:
        """The logit biases fp32 [places] of all that a head holds, −inf for holes; with −inf for what is not attended
        to as well."""
        live = np.flatnonzero(bias > -np.inf)
        seen = live[np.concatenate((self.slots, np.arange(self.count, len(live))))]
        hidden = np.full(len(bias), -np.inf, np.float32)
        hidden[seen] = bias[seen]
        return hidden


def attended(sources: Sequence[Source], head: int, selection: Selection | None) -> list[Span]:
    """The spans of one head: holes, and slots that were not selected, have a bias of −inf."""
    spans = [_span(source, head) for source in sources]
    if selection is None or not spans:
        return spans
    bias = selection.only(np.concatenate([_bias(span) for span in spans]))
    borders = np.cumsum([len(span.keys) for span in spans])[:-1]
    return [Span(span.keys, span.values, own) for span, own in zip(spans, np.split(bias, borders), strict=True)]


def on_path(spans: Sequence[Span], path: Sequence[int], rows: int, window: int | None) -> list[Span]:
    """The spans of one head as a row of a tree sees them: of the newest `rows` slots those of `path`, of the older ones
    all that are in its window, for which the path counts as a line. What it does not see has a bias of −inf.
    """
    bias = np.concatenate([_bias(span) for span in spans])
    committed = len(bias) - rows
    hidden = np.ones(rows, np.bool_)
    hidden[list(path)] = False
    bias[committed:][hidden] = -np.inf
    if window is not None:
        bias[: max(0, committed + len(path) - window)] = -np.inf
    borders = np.cumsum([len(span.keys) for span in spans])[:-1]
    return [Span(span.keys, span.values, own) for span, own in zip(spans, np.split(bias, borders), strict=True)]


def up_to(spans: Sequence[Span], slots: int) -> list[Span]:
    """The first `slots` slots of one head."""
    left, cut = slots, []
    for span in spans:
        count = min(left, len(span.keys))
        bias = None if span.bias is None else span.bias[:count]
        cut.append(Span(span.keys[:count], span.values[:count], bias))
        left -= count
    return cut


def with_pages(spans: Sequence[Span], query: Floats, own: int, selection: PageSelection) -> list[Span]:
    """The spans of one head as a row's query fp32 [head_dim] sees them that selects pages: the others have a bias of
    −inf. own: a slot of the row's own page."""
    bias = np.concatenate([_bias(span) for span in spans])
    keys = np.concatenate([span.keys for span in spans])
    borders = np.cumsum([len(span.keys) for span in spans])
    blocks = np.concatenate(
        [np.arange(end - len(span.keys), end, PAGE) for span, end in zip(spans, borders, strict=True)]
    )
    seen = seen_slots(query, keys, bias == -np.inf, blocks, own, selection.page, selection.pages)
    bias = np.where(seen, bias, np.float32(-np.inf))
    return [Span(span.keys, span.values, own) for span, own in zip(spans, np.split(bias, borders[:-1]), strict=True)]


def reachable(sources: list[Source], slots: int) -> list[Source]:
    """The last sources that hold the newest `slots` slots: a windowed row sees no others."""
    held = 0
    for index in reversed(range(len(sources))):
        held += sources[index].tokens
        if held >= slots:
            return sources[index:]
    return sources


def _span(source: Source, head: int) -> Span:
    segment, slab = source.segment, source.segment.slab(source.layer, head)
    keys, values = kv.read(segment.format, slab, segment.capacity, segment.head_dim, 0, source.tokens)
    if segment.bias is None:
        return Span(keys, values)
    return Span(keys, values, bias_row(segment, segment.bias, source.layer, head)[: source.tokens])


def _bias(span: Span) -> Floats:
    return np.zeros(len(span.keys), np.float32) if span.bias is None else span.bias
