"""Prompts that a policy compresses, as they were before: pages on the disk tier, and what begins with them.

A layer's rows lie in full precision for as long as its prompt is computed (`SequencePrompt`). Before policies act on
them, their whole pages are written to disk. The tree of `Cache.conversations` holds the pages: it knows nothing of
recipes, so that any policy begins with them and acts on the same rows as without them.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Bytes, Floats
from thrifty.cache.slots.builder import release_all
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.cache.tree import Node, PrefixTree, first_page
from thrifty.errors import BudgetError, StorageError
from thrifty.formats import kv, kv_batch
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.model_info import LayerGroup
    from thrifty.cache.slots.sealed_spans import SealedSpans
    from thrifty.storage.ledger import Reservation

_LOG = logging.getLogger("thrifty.cache")


class PromptPages:
    """The pages of one prompt on their way to the disk. `put` takes a layer, `publish` hands all to the tree."""

    def __init__(self, tree: PrefixTree, known: Sequence[Node], hit: int, tokens: int, border: int = 0) -> None:
        """known: the nodes that the tree has of the prompt. hit: tokens that the sequence begins with. tokens: of the
        prompt. border: at how many of them column sums are kept, whole pages; 0: none are. Takes room on the disk for
        what is missing, as far as the tree's bound reaches; where the disk is full, for nothing.
        """
        self._tree = tree
        self._count = min(tokens // PAGE, tree.capacity // page_bytes(tree))
        self._pages: list[list[Segment | None]] = [
            [segment and segment.retain() for segment in node.segments] for node in known[: self._count]
        ]
        self._known = len(self._pages)
        self._first = [self._known if group.window is None else max(self._known, hit // PAGE) for group in tree.groups]
        self._sums: Segment | None = None
        self._summed = 0
        last = border // PAGE - 1
        there = bool(border) and last < self._known and self._pages[last][-1] is not None
        self.border = border if last < self._count and not there else 0
        self._take()

    def put_sums(self, layer: int, sums: Floats) -> None:
        """The column sums of one layer of the rows before `border` over themselves: fp32 [heads, border]."""
        if self._sums is None:
            return
        row = np.zeros(self._sums.slab_bytes // 4, np.float32)  # as long as the layer's with the most heads
        row[: sums.size] = sums.reshape(-1)
        try:
            self._sums.put(layer, row.view(np.uint8))
            self._summed += 1
        except StorageError as error:
            self._give_up(error)

    def put(self, layer: int, segment: Segment) -> None:
        """The rows of one layer before any policy: one segment of all heads. Where the disk does not take them, the
        prompt is not kept.
        """
        group = self._group_of(layer)
        if group is None or not isinstance(segment.positions, int):
            return
        slabs, offset = segment.slabs(), segment.positions // PAGE
        page = np.zeros((len(segment.heads), kv.slab_bytes(segment.format, PAGE, segment.head_dim)), np.uint8)
        for index in range(self._first[group], self._count):
            kv_batch.copy_pages(slabs, page, segment.format, segment.capacity, PAGE, segment.head_dim, index - offset)
            if not self._write(index, group, layer, page):
                return

    def put_pages(self, spans: SealedSpans, length: int) -> None:
        """The pages of a prompt that is held whole, of which `length` tokens are computed: those that are new since the
        last call. Of a windowed group, those that it has not let go of.
        """
        for group, own in enumerate(self._tree.groups):
            held = {span.segment.positions: span.segment for span in spans[own.layers[0]] if span.tokens == PAGE}
            first, self._first[group] = self._first[group], min(self._count, length // PAGE)
            for index in range(first, self._first[group]):
                page = held.get(index * PAGE)
                if page is None:
                    self._drop(index, group)
                    continue
                for layer in own.layers:
                    if not self._write(index, group, layer, np.ascontiguousarray(page.slabs([layer]))):
                        return

    def publish(self, tokens: Sequence[Hashable], *, adapter: str, salt: Hashable) -> int:
        """Hand the pages to the tree, under the prompt's tokens; returns how many were new there."""
        if not self._pages:
            return 0
        if self._sums is not None and self._summed == len(self._sums.layers):
            self._pages[self.border // PAGE - 1][-1], self._sums = self._sums, None
        return self._tree.insert(tokens[: len(self._pages) * PAGE], self._pages, adapter=adapter, salt=salt)

    def close(self) -> None:
        """Let go of all pages; those that the tree has stay its own."""
        pages, self._pages, self._count = self._pages, [], 0
        sums, self._sums = self._sums, None
        for segment in _segments([*pages, [sums]]):
            segment.release()

    def segments(self) -> Iterator[Segment]:
        """What it holds, one reference each."""
        return _segments([*self._pages, [self._sums]])

    # --- inside --------------------------------------------------------------------------------------

    def _take(self) -> None:
        tree, model = self._tree, self._tree.model
        missing = self._count - self._known
        if missing <= 0 and not self.border:
            return
        tree.shrink(max(0, tree.capacity - missing * page_bytes(tree)))
        try:
            for index in range(self._known, self._count):
                row: list[Segment | None] = []
                self._pages.append(row)
                for group, first in zip(tree.groups, self._first, strict=True):
                    row.append(None)
                    if index >= first:
                        heads = tuple(range(group.kv_heads))
                        shape = (group.layers, heads, model.format, group.head_dim, index * PAGE)
                        row[-1] = Segment.on_disk(tree.tiers, *shape)
                row.append(None)
            if self.border:
                nbytes = 4 * model.most_heads * self.border
                self._sums = Segment.on_disk(tree.tiers, model.policy_layers, (0,), "f32", 0, 0, slab_bytes=nbytes)
        except StorageError as error:
            self._give_up(error)

    def _write(self, index: int, group: int, layer: int, slabs: Bytes) -> bool:
        page = self._pages[index][group]
        assert page is not None, "room was taken for it"
        try:
            page.put(layer, slabs)
        except StorageError as error:
            self._give_up(error)
            return False
        return True

    def _drop(self, index: int, group: int) -> None:
        page, self._pages[index][group] = self._pages[index][group], None
        if page is not None:
            page.release()

    def _give_up(self, error: StorageError) -> None:
        _LOG.warning("a prompt is not kept for the next turn: %s", error)
        self.close()

    def _group_of(self, layer: int) -> int | None:
        if not self._pages:
            return None
        return next((place for place, group in enumerate(self._tree.groups) if layer in group.layers), None)


class StoredPrefix:
    """The pages on disk that a sequence begins with, by layer. They come to memory with their layer's prompt."""

    def __init__(self, path: Sequence[Node], groups: Sequence[LayerGroup]) -> None:
        """path: nodes of the tree of conversations; groups: its layer groups, of which those that keep every token have
        their pages here.
        """
        self.length = len(path) * PAGE
        self._pages = {
            group: [segment.retain() for node in path if (segment := node.segments[place]) is not None]
            for place, group in enumerate(groups)
            if group.window is None
        }
        sums = path[-1].segments[-1] if path else None
        self._sums = None if sums is None else sums.retain()

    def spans(self, layer: int) -> list[Span]:
        """A layer's pages as spans, whose references stay its own."""
        own = next((pages for group, pages in self._pages.items() if layer in group.layers), [])
        return [Span(page, PAGE) for page in own]

    def sums(self, layer: int, heads: int) -> Floats | None:
        """Column sums of its rows in one layer, fp32 [heads, tokens]; None where there are none of all of them."""
        if self._sums is None:
            return None
        numbers: Floats = self._sums.slab(layer, 0).view(np.float32)
        return numbers[: heads * self.length].reshape(heads, self.length)

    def segments(self) -> Iterator[Segment]:
        """What it holds, one reference each."""
        return _segments([*self._pages.values(), [self._sums]])

    def close(self) -> None:
        """Let go of the pages."""
        held, self._pages, self._sums = list(self.segments()), {}, None
        for segment in held:
            segment.release()


def page_bytes(tree: PrefixTree) -> int:
    """Bytes of one page of all layers."""
    format, rounded = tree.model.format, tree.tiers.arena.rounded
    slabs = [kv.slab_bytes(format, PAGE, group.head_dim) * group.kv_heads * len(group.layers) for group in tree.groups]
    return sum(map(rounded, slabs))


def begin_with_stored(
    groups: Sequence[LayerGroup], spans: SealedSpans, path: Sequence[Node], reservation: Reservation | None, whole: bool
) -> StoredPrefix | None:
    """Let a sequence begin with pages on disk. Windowed layers get theirs in memory, and where the prompt is held whole
    (`whole`) all layers do; None where these do not fit.
    """
    length = len(path) * PAGE
    made: list[tuple[LayerGroup, list[Span]]] = []
    try:
        for index, group in enumerate(groups):
            if group.window is not None or whole:
                made.append((group, []))
                for node in path[first_page(group, length) :]:
                    made[-1][1].append(_in_memory(node.segments[index], reservation))
    except (BudgetError, StorageError):
        for _, own in made:
            release_all(own)
        return None
    for group, own in made:
        for span in own:
            span.segment.retain(len(group.layers) - 1)
        for layer in group.layers:
            spans.add(layer, *own)
            spans.skip(layer, first_page(group, length))
    return StoredPrefix(() if whole else path, groups)


def _in_memory(page: Segment | None, reservation: Reservation | None) -> Span:
    """A copy of a page on disk, in the memory of who asks."""
    assert page is not None, "a match has every page"
    copy = page.copy_in_memory(reservation)
    copy.recategorise("cache")
    copy.tokens, copy.positions = page.tokens, page.positions
    return Span(copy, copy.tokens)


def _segments(pages: Sequence[Sequence[Segment | None]]) -> Iterator[Segment]:
    return (segment for row in pages for segment in row if segment is not None)
