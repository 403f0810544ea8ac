"""The slots of one sequence: sealed spans by layer, rows that are still open, and the native view of both.

It knows where slots lie and who holds their bytes, not which policies, statistics or phases of a request changed them:
that is `SequenceCache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakSet

from thrifty.arrays import Array, Floats, Integers
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.builder import Builder
from thrifty.cache.slots.native_view import NativeView
from thrifty.cache.slots.open_rows import OpenRows
from thrifty.cache.slots.places import Places
from thrifty.cache.slots.sealed_spans import SealedSpans
from thrifty.cache.slots.sealing import seal_first_pages
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.states import RecurrentStates
from thrifty.cache.slots.tail import Tail
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.cache.page_selection import PageSelection
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation


class SequenceSlots:
    """length: committed tokens, evicted ones included: the position of the next token. prompt: its length when the
    (last) prompt ended. parked_at: when it was last parked, by the clock of the tiers. siblings: all live sequences of
    the same cache, itself among them.
    """

    def __init__(
        self,
        tiers: Tiers,
        model: ModelInfo,
        reservation: Reservation | None,
        siblings: WeakSet[SequenceSlots] | None = None,
        selection: PageSelection | None = None,
        head_group: int | None = None,
    ) -> None:
        """reservation: promised bytes to draw from; it is released by `free`. siblings: the set that it joins.
        selection: what rows that decode attend to, None: everything. head_group: KV heads that steps read from disk
        together, None: what lies on disk comes to memory before a step.
        """
        self.model = model
        self.tiers = tiers
        self.reservation = reservation
        self.length = 0
        self.prompt = 0
        self.parked = False
        self.parked_at = 0
        self.builder = Builder(tiers, model, reservation)
        self.policy_layers = model.policy_layers
        self.spans = SealedSpans([model.of(layer).kv_heads for layer in range(model.layers)])
        self.tail = Tail(tiers, model, model.layer_groups(), reservation)
        self.open_rows = OpenRows(tiers, model, self.tail, reservation)
        self.states = RecurrentStates(tiers, model, reservation) if model.state_layers else None
        self.selection = selection
        shown = (self.spans, self.open_rows, self.states)
        self.streams = head_group is not None
        self.native_view = NativeView(tiers, model, shown, reservation, selection, head_group)
        self._freed = False
        self.siblings: WeakSet[SequenceSlots] = WeakSet() if siblings is None else siblings
        self.siblings.add(self)

    # --- what it holds -------------------------------------------------------------------------------

    def slots(self, layer: int, head: int = 0) -> int:
        """Physical slots of one head now, uncommitted rows of the reference path included."""
        held = sum(span.count(layer, head) for span in self.spans[layer])
        return held + self.open_rows.rows(layer)

    @property
    def nbytes(self) -> int:
        """Bytes of the segments it holds, in any tier; a shared segment counts in full."""
        return sum(segment.nbytes for segment in self.segments())

    def segments(self) -> list[Segment]:
        """Every segment that it holds, once."""
        segments = self.spans.segments()
        segments |= {id(page): page for pages in self.tail.pages for page in pages}
        if self.open_rows.scratch is not None:
            segments[id(self.open_rows.scratch.segment)] = self.open_rows.scratch.segment
        if self.states is not None:
            segments |= {id(segment): segment for segment in self.states.segments()}
        return list(segments.values())

    def segments_in_use(self) -> list[Segment]:
        """Those of its segments that its next step needs: all but a snapshot of its states."""
        snapshot = None if self.states is None else self.states.snapshot
        return [segment for segment in self.segments() if segment is not snapshot]

    def sealed_counts(self, layer: int) -> list[int]:
        """Sealed slots of each KV head (without the open tail): those that policies see and edit."""
        return self.spans.counts(layer)

    def places(self, layer: int) -> Places | None:
        """Where a layer's sealed slots lie among its places, holes counted; None where it has no holes."""
        return self.spans.places(layer)

    def place_counts(self, layer: int) -> list[int]:
        """Places of each KV head, holes and uncommitted rows of the reference path included."""
        rows = self.open_rows.rows(layer)
        return [rows + sealed for sealed in self.spans.place_counts(layer)]

    def counts(self, layer: int) -> list[int]:
        """Slots of each KV head, uncommitted rows of the reference path included."""
        return [count + self.open_rows.rows(layer) for count in self.sealed_counts(layer)]

    # --- room and rows -------------------------------------------------------------------------------

    def reserve(self, n: int) -> None:
        """Make room for n more rows in the open pages of every layer group. Cheap when there is room.

        Raises BudgetError or StorageError, with nothing changed.
        """
        missing = self.tail.missing(n)
        if missing <= 0:
            return
        if self.states is not None:
            self.states.make_way(missing * self.tail.page_bytes)
        made = self.tail.open(missing, self.length)
        for group, pages in zip(self.tail.groups, made, strict=True):
            for page in pages:
                for layer in group.layers:
                    self.native_view.open_page(layer, page)

    def append(self, layer: int, key: Array, value: Array) -> None:
        """Reference path: store rows [n, kv_heads, head_dim] (any float dtype, keys rotated) in the layer's open pages.

        Needs a `reserve` (or `begin_layer`) that holds them. Raises PromptError where it does not.
        """
        self.native_view.drop()
        self.open_rows.append(layer, key, value)

    def state(self, layer: int) -> Floats:
        """Reference path: fp32 [numbers], a recurrent layer's state after its newest rows."""
        return self._states().read(layer)

    def set_state(self, layer: int, state: Floats, rows: int) -> None:
        """Reference path: a recurrent layer's state fp32 [numbers] after `rows` more rows."""
        self.native_view.drop()
        self._states().write(layer, state, rows)

    def drop_snapshot(self) -> None:
        """Let a snapshot of its states go: nothing but a later prefix hit would need it."""
        if self.states is not None:
            self.states.drop_snapshot()

    def stop_snapshots(self) -> None:
        """It will not be published again: no more snapshots of its states."""
        if self.states is not None:
            self.states.stop_snapshots()

    def _states(self) -> RecurrentStates:
        if self.states is None:
            raise PromptError("no layer of this sequence's model is recurrent")
        return self.states

    # --- what edits change ---------------------------------------------------------------------------

    def seal_tail(self) -> None:
        """Make the partly filled open page a sealed span of its own, so that edits may touch its slots."""
        if self.tail.rows:
            seal_first_pages(self.tail, self.spans, self.tail.rows)
            self.tail.number(self.length)
            self.native_view.drop()

    def select(self, layer: int, indices: tuple[Integers, ...] | None) -> None:
        """Attend to these sealed slots of a layer (one array a KV head) and to all newer ones; None ends it."""
        self.spans.select(layer, indices)
        self.native_view.reselect(layer)

    def replace_spans(self, layer: int, spans: list[Span]) -> None:
        """A layer's new spans, with their references; the old ones were released by the edit."""
        self.spans.replace(layer, spans)
        self.native_view.drop()

    def exchange_span(self, layer: int, place: int, span: Span) -> None:
        """One span's contents in another form; the caller keeps the old one's reference."""
        self.spans.exchange(layer, place, span)
        spans = self.spans[layer]
        heads = self.model.of(layer).kv_heads
        if layer not in self.spans.selected and all(len(own.segment.heads) == heads for own in spans):
            self.native_view.exchange(layer, place % len(spans), span)
        else:
            self.native_view.drop()

    # --- parking, ending -----------------------------------------------------------------------------

    @property
    def freed(self) -> bool:
        """Whether `free` was called: what it holds no longer counts."""
        return self._freed

    @property
    def index_bytes(self) -> int:
        """Index bytes that it has charged beyond those of its segments."""
        return self.native_view.charged

    def references(self) -> Iterator[Segment]:
        """What it holds, one a reference: a span has one in the list of every layer."""
        for spans in self.spans:
            yield from (span.segment for span in spans)
        for pages in self.tail.pages:
            yield from pages
        if self.open_rows.scratch is not None:
            yield self.open_rows.scratch.segment
        if self.states is not None:
            yield from self.states.segments()
        yield from self.native_view.copies()

    def free(self) -> None:
        """Release everything, the reservation included. A second call has no effect. What an error in the middle
        leaves is freed by `Cache.recount`.
        """
        if self._freed:
            return
        self._freed = True
        try:
            with self.tiers.arena.together():
                self._release_all()
        finally:
            if self.reservation is not None:
                self.reservation.release()

    def hand_over(self) -> Reservation | None:
        """Free all but the reservation, which is the caller's from now on."""
        reservation, self.reservation = self.reservation, None
        self.free()
        return reservation

    def _release_all(self) -> None:
        self.native_view.drop()
        self.open_rows.close()
        if self.states is not None:
            self.states.close()
        self.drop_spans()

    def drop_spans(self) -> None:
        """Let all sealed slots go."""
        self.spans.clear()

    def __del__(self) -> None:
        if getattr(self, "_freed", True) is False:  # dropped without free(): its bytes must not stay charged
            self.free()

    def park(self) -> None:
        """The engine will not step this sequence for a while: its promise ends and its segments may move to disk. A
        snapshot of its states goes: no promise would bring it back.
        """
        self.native_view.drop_but_rows()
        self.drop_snapshot()
        self.parked = True
        self.parked_at = next(self.tiers.clock)
        if self.reservation is not None:
            self.reservation.suspend()

    def resume(self) -> None:
        """Bring every segment back to memory before the next step.

        Raises BudgetError where there is no room; the sequence is then still parked and whole.
        """
        if not self.parked:
            return
        self.parked = False  # from here on its segments are in use: they never make room for each other
        try:
            if self.reservation is not None:
                away = sum(segment.nbytes for segment in self.away())
                self.tiers.make_room(max(self.reservation.outstanding, away))
                self.reservation.resume()
            self.bring_in()
        except BaseException:
            self.parked = True
            if self.reservation is not None:
                self.reservation.suspend()
            raise

    def bring_in(self, *, streamed: bool = False) -> None:
        """To memory what steps need there. streamed: also what they could read from disk, where others might move it
        meanwhile. Raises BudgetError or StorageError where not all of it fits; some may have come then.
        """
        for segment in self.segments() if streamed else self.away():
            segment.owner.to_memory()

    def away(self) -> list[Segment]:
        """The segments on disk that steps need in memory: all, but those that it streams."""
        streamed = self.spans.segments() if self.streams else {}
        return [segment for segment in self.segments() if segment.tier == "disk" and id(segment) not in streamed]
