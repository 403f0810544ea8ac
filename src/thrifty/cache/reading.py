"""What a row of the reference path attends to: the slots of one head, in their order, as fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.cache.segment import Segment
from thrifty.formats import kv
from thrifty.kernels.reference.attention import Span


@dataclass(frozen=True)
class Source:
    """The first `tokens` slots of a segment, read as layer `layer`."""

    segment: Segment
    layer: int
    tokens: int


@dataclass(frozen=True)
class Selection:
    """The slots that one head attends to, of the `count` it had when they were selected, and all newer ones."""

    slots: Tensor
    count: int


class Columns:
    """Which slots the columns of an attention result are: `live` picks those that are no holes, `place` puts a
    selection's columns back among all `total` slots."""

    def __init__(self, live: Tensor | None = None, place: Tensor | None = None, total: int = 0) -> None:
        self._live = live
        self._place = place
        self._total = total

    def of(self, chances: Tensor) -> Tensor:
        """[..., attended] → [..., slots]."""
        if self._place is not None:
            whole = chances.new_zeros(*chances.shape[:-1], self._total)
            whole[..., self._place] = chances
            return whole
        return chances if self._live is None else chances[..., self._live]


def attended(sources: Sequence[Source], head: int, selection: Selection | None) -> tuple[list[Span], Columns]:
    """The spans of one head, and what the columns of a result over them are."""
    spans = [_span(source, head) for source in sources]
    holes = any(source.segment.parent is not None for source in sources)
    live = torch.nonzero(torch.cat([_bias(one) for one in spans]) > -torch.inf).flatten() if holes else None
    if selection is None:
        return spans, Columns(live)
    total = sum(len(one.keys) for one in spans) if live is None else len(live)
    place = torch.cat((selection.slots, torch.arange(selection.count, total)))
    slots = place if live is None else live[place]
    keys, values = torch.cat([one.keys for one in spans]), torch.cat([one.values for one in spans])
    bias = torch.cat([_bias(one) for one in spans])
    return [Span(keys[slots], values[slots], bias[slots])], Columns(place=place, total=total)


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
    row = segment.bias[segment.layers.index(source.layer), segment.heads.index(head), : source.tokens]
    return Span(keys, values, row)


def _bias(span: Span) -> Tensor:
    return torch.zeros(len(span.keys)) if span.bias is None else span.bias
