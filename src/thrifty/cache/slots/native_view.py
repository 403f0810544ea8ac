"""The native View of a sequence, kept in step with its spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import Bytes, Floats
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.page_selection import BLOCKS
from thrifty.cache.slots.segment import INDEX, Segment
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.streaming import Streaming
from thrifty.errors import BudgetError, KernelError, StorageError
from thrifty.formats.kv import FORMATS, PAGE
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.page_selection import PageSelection
    from thrifty.cache.slots.open_rows import OpenRows
    from thrifty.cache.slots.sealed_spans import SealedSpans
    from thrifty.cache.slots.states import RecurrentStates
    from thrifty.cache.slots.streaming import Group
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation

CHUNK_PAGES = 4
"""Native attention splits at fixed chunks of 4 pages (256 slots), counted from the view's first page."""


def native_view(model: ModelInfo) -> Any:
    """An empty native View, or None where the native module is absent or off. Raises KernelError where native code does
    not take the head dimension.
    """
    module = dispatch.native()
    if module is None:
        return None
    widths = [model.of(layer) for layer in range(model.layers)]
    try:
        return module.View([own.kv_heads for own in widths], [own.head_dim for own in widths])
    except ValueError as error:
        raise KernelError(f"{error}; native=False (--reference) runs without native code") from error


class NativeView:
    """Pushes what a sequence holds into a native View, from when it is first asked for. Every call keeps view and
    Python lists equal, or lets the view go; where there is none it has no effect.

    Where rows select pages, room for what the view knows of them is charged before it is taken.

    Holes and slots that are not selected are seen with a logit bias of −inf. What lies on disk is seen in a copy in
    memory, which the ledger counts while there is a view; where the sequence streams, in buffers that each step fills.

    view: the native View, None while there is none. It knows how many rows are uncommitted, `OpenRows` then does not.
    charged: index bytes, of selections' biases and of pages' bounds.
    """

    def __init__(
        self,
        tiers: Tiers,
        model: ModelInfo,
        shown: tuple[SealedSpans, OpenRows, RecurrentStates | None],
        reservation: Reservation | None,
        selection: PageSelection | None = None,
        head_group: int | None = None,
    ) -> None:
        """shown: what it shows. selection: what rows that decode attend to. head_group: KV heads that are read from
        disk together at every step; None: nothing is.
        """
        self.view: Any = None
        self.charged = 0
        self._tiers = tiers
        self._model = model
        self._spans, self._open_rows, self._states = shown
        self._reservation = reservation
        self._selection = selection
        self._blocks = 0
        self._grown = False
        self._sums = False
        self._copies: dict[Segment, Segment] = {}
        self._biases: dict[int, list[Floats]] = {}
        self._left_out: dict[int, int] = {}
        self._streaming = None if head_group is None else Streaming(tiers, model, reservation, head_group)
        self._groups: dict[int, list[Group]] = {}
        self._counted = 0

    def follow(self, *, sums: bool) -> Any:
        """The view, made where there is none; None where there is no native code. sums: whether native code is to
        collect column sums, for which the view has every place. Raises BudgetError or StorageError, with no view.
        """
        if self._sums != sums and self._biases:
            self.drop_but_rows()
        self._sums = sums
        self._count_reads()
        if self._grown and self.view is not None:
            try:
                self._hold_bounds(self.view)
            except BudgetError:
                self.drop_but_rows()
                raise
        if self.view is None:
            view = native_view(self._model)
            if view is not None:
                self._fill(view)
                self._open_rows.pending = {}  # the view has them
                if self._states is not None:
                    self._states.show(view)
                self.view = view
        return self.view

    def drop(self) -> None:
        """Let the view go, with the uncommitted rows that native code appended."""
        self._count_reads()
        self.view, self._counted = None, 0
        if self._streaming is not None:
            self._streaming.close()
            self._groups = {}
        if self.charged:
            self._biases, self._left_out, self._blocks = {}, {}, 0
            charged, self.charged = self.charged, 0
            self._tiers.ledger.credit(INDEX, charged, self._reservation)
        if self._copies:
            copies, self._copies = self._copies, {}
            for segment in copies.values():
                segment.release()

    def drop_but_rows(self) -> None:
        """Let the view go, but not the uncommitted rows that native code appended: a chunk may be half done."""
        if self.view is not None:
            rows = {layer: self.uncommitted(layer) for layer in self._model.attention_layers}
            self._open_rows.pending = {layer: count for layer, count in rows.items() if count}
            if self._states is not None:
                self._states.take_over(self.view)
        self.drop()

    def copies(self) -> Iterator[Segment]:
        """What it holds in memory of segments that lie on disk, one reference each."""
        yield from self._copies.values()
        if self._streaming is not None:
            yield from self._streaming.segments()

    def uncommitted(self, layer: int) -> int:
        """Rows of a layer that the view has and the sequence has not committed."""
        assert self.view is not None, "the native view was asked for"
        sealed = sum(span.tokens for span in self._spans[layer] if span.holds(0)) - self._left_out.get(layer, 0)
        return int(self.view.tokens(layer, 0)) - sealed - self._open_rows.committed(layer)

    def widest(self, layers: Sequence[int]) -> int:
        """Places of the head that holds most, holes counted."""
        assert self.view is not None, "the native view was asked for"
        heads = [(layer, head) for layer in layers for head in range(self._model.of(layer).kv_heads)]
        return max((self.view.tokens(layer, head) for layer, head in heads), default=0)

    def truncate(self, rows: int) -> None:
        """Drop the newest rows of every layer."""
        if self.view is not None:
            for layer in range(self._model.layers):
                self.view.truncate(layer, rows)

    def rebuild(self, layer: int) -> None:
        """Everything of one layer anew; every row of other layers is committed where what it reads from disk does not
        fit the buffers: then the view goes."""
        if self.view is None:
            return
        if self._streaming is not None:
            groups = self._streaming.groups(layer, self._spans[layer])
            if not self._streaming.holds(groups):
                self.drop()
                return
            self._groups[layer] = groups
        self._push_all(self.view, layer)

    def reselect(self, layer: int) -> None:
        """Another choice of a layer's slots is attended to, or all of them again; every row is committed. Where the
        biases do not fit, the view goes: `follow` then says what is missing."""
        if self.view is None:
            return
        if self._streaming is not None:
            self.drop()
            return
        try:
            self._push_all(self.view, layer)
        except (BudgetError, StorageError):
            self.drop()
            return
        if layer not in self._spans.selected and layer in self._biases:
            nbytes = sum(bias.nbytes for bias in self._biases.pop(layer))
            self._tiers.ledger.credit(INDEX, nbytes, self._reservation)
            self.charged -= nbytes
            del self._left_out[layer]

    def exchange(self, layer: int, index: int, span: Span) -> None:
        """The span at `index`, which holds every head as all before it do, is now this one, of as many tokens."""
        if self.view is None:
            return
        if self._streaming is not None:
            self.drop()  # it may read the bytes that went
            return
        segment, source = span.segment, span.layer(layer)
        form, bias = FORMATS.index(segment.format), span.bias_rows(layer)
        for row, (head, slab) in enumerate(zip(segment.heads, segment.slabs([source]), strict=True)):
            own = None if bias is None else bias[row]
            self.view.exchange(layer, head, index, slab, segment.capacity, form, own)

    def open_page(self, layer: int, segment: Segment) -> None:
        """An open segment that native code appends to."""
        if self.view is None:
            return
        _push_open(self.view, layer, segment, 0)
        self._grown = self._selection is not None

    def drop_front(self, layer: int, spans: int) -> None:
        """A windowed layer let go of its first spans."""
        if layer in self._biases:
            self.drop()
        if self.view is not None:
            for head in range(self._model.of(layer).kv_heads):
                self.view.drop_front(layer, head, spans)

    # --- pushing -------------------------------------------------------------------------------------

    def _fill(self, view: Any) -> None:
        try:
            if self._streaming is not None:
                self._begin_streaming(self._streaming)
            for layer in self._model.attention_layers:
                self._push_all(view, layer)
            if self._selection is not None:
                for layer in self._selection.layers:
                    view.select_pages(layer, self._selection.page, self._selection.pages)
                self._hold_bounds(view)
        except BaseException:
            self.drop()
            raise

    def _begin_streaming(self, streaming: Streaming) -> None:
        """Buffers for the longest group that lies on disk. Raises BudgetError or StorageError."""
        layers = self._model.policy_layers
        self._groups = {layer: streaming.groups(layer, self._spans[layer]) for layer in layers}
        need = max((group.nbytes for groups in self._groups.values() for group in groups), default=0)
        if need:
            streaming.make_buffers(need)

    def _count_reads(self) -> None:
        """Tell the disk tier what steps have read of it since the last call."""
        if self._streaming is not None and self.view is not None and self._tiers.disk is not None:
            read = int(self.view.bytes_read)
            self._tiers.disk.count_read(read - self._counted)
            self._counted = read

    def _hold_bounds(self, view: Any) -> None:
        """Room for the bounds of all blocks that the view has, where rows select pages. Raises BudgetError with nothing
        changed.
        """
        blocks = -(-view.most_blocks // BLOCKS) * BLOCKS
        if self._selection is not None and blocks > self._blocks:
            nbytes = self._selection.bounds_bytes(self._model, blocks - self._blocks)
            self._tiers.charge(INDEX, nbytes, self._reservation)
            self.charged += nbytes
            view.hold_bounds(blocks)
            self._blocks = blocks
        self._grown = False

    def _push_all(self, view: Any, layer: int) -> None:
        view.clear(layer, -1)
        self._grown = self._selection is not None  # an edit may part blocks
        spans = self._spans[layer]
        self._advance(view, layer, self._spans.let_go[layer] % CHUNK_PAGES)
        if layer in self._spans.selected:
            self._push_selected(view, layer)
        elif self._streaming is not None and self._groups.get(layer):
            self._streaming.push(view, layer, spans, self._groups[layer])
        else:
            for span in spans:
                segment, source = span.segment, span.layer(layer)
                slabs, form = self._slabs(segment, source), FORMATS.index(segment.format)
                bias = span.bias_rows(layer)
                view.push_heads(layer, segment.heads, slabs, span.tokens, segment.capacity, form, bias, True)
        for segment, tokens in self._open_rows.pages(layer):
            _push_open(view, layer, segment, tokens)

    def _push_selected(self, view: Any, layer: int) -> None:
        """The spans of a layer of which only some slots are attended to. Those without any are left out, but where
        column sums count places."""
        biases = self._biases[layer] = self._selected_biases(layer)
        self._left_out[layer] = 0
        first = [0] * self._model.of(layer).kv_heads
        for span in self._spans[layer]:
            segment = span.segment
            for head in segment.heads:
                own = biases[head][first[head] : first[head] + span.tokens]
                first[head] += span.tokens
                if not self._sums and own.max(initial=-np.inf) == -np.inf:
                    self._left_out[layer] += span.tokens if head == 0 else 0
                    continue
                slab = self._slabs(segment, span.layer(layer))[segment.heads.index(head)]
                form = FORMATS.index(segment.format)
                view.push(layer, head, slab, span.tokens, segment.capacity, form, own, True)

    def _selected_biases(self, layer: int) -> list[Floats]:
        """By KV head fp32 [places], charged until the view goes."""
        biases = []
        for head, selection in enumerate(self._spans.selected[layer]):
            held = [span.bias(layer, head) for span in self._spans[layer] if span.holds(head)]
            biases.append(selection.only(np.concatenate([np.empty(0, np.float32), *held])))
        nbytes = sum(bias.nbytes for bias in biases) - sum(bias.nbytes for bias in self._biases.get(layer, ()))
        if nbytes > 0:
            self._tiers.charge(INDEX, nbytes, self._reservation)
        else:
            self._tiers.ledger.credit(INDEX, -nbytes, self._reservation)
        self.charged += nbytes
        return biases

    def _advance(self, view: Any, layer: int, pages: int) -> None:
        """Push and drop as many pages, so that attention chunks of a windowed layer stay where they were."""
        spans = self._spans[layer]
        if not pages or not spans:
            return
        segment = spans[0].segment
        slabs, form = self._slabs(segment, spans[0].layer(layer)), FORMATS.index(segment.format)
        for head in range(self._model.of(layer).kv_heads):
            for _ in range(pages):
                view.push(layer, head, slabs[0], PAGE, segment.capacity, form, None, True)
            view.drop_front(layer, head, pages)

    def _slabs(self, segment: Segment, layer: int) -> Bytes:
        """uint8 [heads, slab_bytes] of one layer, in memory."""
        owner = segment.owner
        if owner.run is not None:
            return owner.slabs([layer])
        if owner not in self._copies:
            self._copies[owner] = owner.copy_in_memory(self._reservation)
        return self._copies[owner].slabs([layer])


def _push_open(view: Any, layer: int, segment: Segment, tokens: int) -> None:
    form = FORMATS.index(segment.format)
    view.push_heads(layer, segment.heads, segment.slabs([layer]), tokens, segment.capacity, form, None, False)
