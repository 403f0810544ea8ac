"""What policies that quantise while decoding share: a head's exact slots, and edits that store some of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from thrifty.cache.edits import Edits
from thrifty.cache.view import LayerView, Stretch

Ranges = Callable[[LayerView, int], list[tuple[int, int | None]]]
"""(view, head) → slots to store, start and stop counted from the head's end, oldest first; stop None is the end."""


def exact_from_end(view: LayerView, head: int) -> list[Stretch]:
    """A head's exact stretches behind its last codes, newest first, with slots counted from its end."""
    return list(itertools.takewhile(lambda stretch: not stretch.quantised, view.stretches_from_end(head)))


def store_ranges(layers: Sequence[LayerView], ranges: Ranges, format: str) -> Edits:
    """Edits that hold `ranges` of every layer and head as `format`: in one piece for all layers where they are the same
    everywhere.
    """
    edits = Edits()
    by_layer = [[ranges(view, head) for head in _heads(view)] for view in layers]
    if by_layer and all(heads == by_layer[0] and heads[0] == heads[-1] for heads in by_layer):
        for start, stop in by_layer[0][0]:
            edits.store(start, stop, format)
        return edits
    for view, heads in zip(layers, by_layer, strict=True):
        for head, own in enumerate(heads):
            for start, stop in own:
                edits.store(start, stop, format, layer=view.layer, head=None if view.uniform else head)
    return edits


def _heads(view: LayerView) -> range:
    return range(1) if view.uniform else range(view.kv_heads)
