"""The full-precision pages of a sequence, as the prefix tree takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.cache.slots.segment import Segment
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.model_info import LayerGroup
    from thrifty.cache.sequence import SequenceCache


def whole_pages(sequence: SequenceCache, groups: Sequence[LayerGroup], count: int) -> list[list[Segment | None]]:
    """By page the segments of the layer groups, None where one is not at hand; behind them, for recurrent layers, a
    snapshot of their states at the page's end. Empty where a group that keeps every token lacks one of `count` pages.
    """
    held = [_by_start(sequence, group.layers, sequence.model.format) for group in groups]
    if sequence.states is not None:
        snapshot = sequence.states.snapshot
        held.append({} if snapshot is None else {position(snapshot) - PAGE: snapshot})
    pages = [[own.get(index * PAGE) for own in held] for index in range(count)]
    everything = [index for index, group in enumerate(groups) if group.window is None]
    return pages if all(page[index] is not None for index in everything for page in pages) else []


def position(segment: Segment) -> int:
    """Where a segment's tokens begin, or the length of which it is a snapshot."""
    assert isinstance(segment.positions, int), "pages and snapshots lie at one position"
    return segment.positions


def _by_start(sequence: SequenceCache, layers: tuple[int, ...], format: str) -> dict[int, Segment]:
    """A group's untouched full-precision pages by the position they begin at."""
    pages = {}
    for span in sequence.spans[layers[0]]:
        page = span.segment
        plain = page.layers == layers and page.format == format and page.capacity == PAGE and span.tokens == PAGE
        if plain and isinstance(page.positions, int) and page.bias is None and page.parent is None:
            pages[page.positions] = page
    return pages
