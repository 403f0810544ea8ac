"""The slots of one sequence: sealed spans by layer, rows that are still open, and the native view of both.

It knows where slots lie and who holds their bytes, not which policies, statistics or phases of a request changed them:
that is `SequenceCache`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from thrifty.arrays import Array, Floats, Integers
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.builder import Builder
from thrifty.cache.slots.native_view import Mirror
from thrifty.cache.slots.open_rows import OpenRows
from thrifty.cache.slots.places import Places, places
from thrifty.cache.slots.reading import Selection
from thrifty.cache.slots.sealing import adopt
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.states import RecurrentStates
from thrifty.cache.slots.tail import Tail
from thrifty.cache.view import LayerView
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation


class SequenceSlots:
    """length: committed tokens, evicted ones included: the position of the next token. prompt: its length when the
    (last) prompt ended. parked_at: when it was last parked, by the clock of the tiers. spans: by layer, in the order in
    which rows attend to them; shared spans are one object. let_go: by layer, how many spans there were before those:
    native attention splits counting from the first that ever was.
    """

    def __init__(self, tiers: Tiers, model: ModelInfo, reservation: Reservation | None) -> None:
        """reservation: promised bytes to draw from; it is released by `free`."""
        self.model = model
        self.tiers = tiers
        self.reservation = reservation
        self.length = 0
        self.prompt = 0
        self.parked = False
        self.parked_at = 0
        self.builder = Builder(tiers, model, reservation)
        self.policy_layers = model.policy_layers
        self.spans: list[list[Span]] = [[] for _ in range(model.layers)]
        self.let_go = [0] * model.layers
        self.selected: dict[int, list[Selection]] = {}
        self.tail = Tail(tiers, model, model.layer_groups(), reservation)
        self.open_rows = OpenRows(tiers, model, self.tail, reservation)
        self.mirror = Mirror(tiers, model, reservation)
        self.states = RecurrentStates(tiers, model, reservation) if model.state_layers else None
        self._freed = False
        tiers.sequences.add(self)

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
        found = {id(span.segment): span.segment for spans in self.spans for span in spans}
        found |= {id(page): page for pages in self.tail.pages for page in pages}
        if self.open_rows.scratch is not None:
            found[id(self.open_rows.scratch.segment)] = self.open_rows.scratch.segment
        if self.states is not None:
            found |= {id(segment): segment for segment in self.states.segments()}
        return list(found.values())

    def sealed_counts(self, layer: int) -> list[int]:
        """Sealed slots of each KV head (without the open tail): those that policies see and edit."""
        spans = self.spans[layer]
        return [sum(span.count(layer, head) for span in spans) for head in range(self.model.kv_heads)]

    def places(self, layer: int) -> Places | None:
        """Where a layer's sealed slots lie among its places, holes counted; None where it has no holes."""
        return places(self.spans[layer], layer, self.model.kv_heads)

    def place_counts(self, layer: int) -> list[int]:
        """Places of each KV head, holes and uncommitted rows of the reference path included."""
        rows, spans = self.open_rows.rows(layer), self.spans[layer]
        return [rows + sum(span.tokens for span in spans if span.holds(head)) for head in range(self.model.kv_heads)]

    def view(self, layer: int) -> LayerView:
        """A layer's sealed slots as a policy sees them."""
        return LayerView(self.model.layer(layer, self.length, self.prompt), self.spans[layer])

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
        made = self.tail.open(missing, self.length)
        for group, pages in zip(self.tail.groups, made, strict=True):
            for page in pages:
                for layer in group.layers:
                    self.mirror.open_page(layer, page)

    def append(self, layer: int, key: Array, value: Array) -> None:
        """Reference path: store rows [n, kv_heads, head_dim] (any float dtype, keys rotated) in the layer's open pages.

        Needs a `reserve` (or `begin_layer`) that holds them. Raises PromptError where it does not.
        """
        self.mirror.drop()
        self.open_rows.append(layer, key, value)

    def state(self, layer: int) -> Floats:
        """Reference path: fp32 [numbers], a recurrent layer's state after its newest rows."""
        return self._states().read(layer)

    def set_state(self, layer: int, state: Floats, rows: int) -> None:
        """Reference path: a recurrent layer's state fp32 [numbers] after `rows` more rows."""
        self.mirror.drop()
        self._states().write(layer, state, rows)

    def _states(self) -> RecurrentStates:
        if self.states is None:
            raise PromptError("no layer of this sequence's model is recurrent")
        return self.states

    # --- what edits change ---------------------------------------------------------------------------

    def seal_tail(self) -> None:
        """Make the partly filled open page a sealed span of its own, so that edits may touch its slots."""
        if self.tail.rows:
            adopt(self, self.tail.rows)
            self.tail.number(self.length)
            self.mirror.drop()

    def select(self, layer: int, indices: tuple[Integers, ...] | None) -> None:
        """Attend to these sealed slots of a layer (one array a KV head) and to all newer ones; None ends it."""
        self.mirror.drop()
        if indices is None:
            self.selected.pop(layer, None)
        else:
            counts = self.sealed_counts(layer)
            self.selected[layer] = [Selection(slots, count) for slots, count in zip(indices, counts, strict=True)]

    def replace_spans(self, layer: int, spans: list[Span]) -> None:
        """A layer's new spans, with their references; the old ones were released by the edit."""
        self.spans[layer] = spans
        self.mirror.drop()

    def exchange_span(self, layer: int, place: int, span: Span) -> None:
        """One span's contents in another form; the caller keeps the old one's reference."""
        spans = self.spans[layer]
        spans[place] = span
        if layer not in self.selected and all(len(one.segment.heads) == self.model.kv_heads for one in spans):
            self.mirror.exchange(layer, place % len(spans), span)
        else:
            self.mirror.drop()

    # --- parking, ending -----------------------------------------------------------------------------

    @property
    def freed(self) -> bool:
        """Whether `free` was called: what it holds no longer counts."""
        return self._freed

    @property
    def index_bytes(self) -> int:
        """Index bytes that it has charged beyond those of its segments."""
        return self.mirror.charged

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
        yield from self.mirror.copies()

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

    def _release_all(self) -> None:
        self.mirror.drop()
        self.open_rows.close()
        if self.states is not None:
            self.states.close()
        self.drop_spans()

    def drop_spans(self) -> None:
        """Let all sealed slots go."""
        held = Counter(id(span.segment) for spans in self.spans for span in spans)
        for segment in {id(span.segment): span.segment for spans in self.spans for span in spans}.values():
            segment.release(held[id(segment)])
        self.spans = [[] for _ in self.spans]
        self.let_go = [0] * len(self.spans)

    def __del__(self) -> None:
        if getattr(self, "_freed", True) is False:  # dropped without free(): its bytes must not stay charged
            self.free()

    def park(self) -> None:
        """The engine will not step this sequence for a while: its promise ends and its segments may move to disk."""
        self.mirror.hand_back(self)
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
                away = sum(segment.nbytes for segment in self.segments() if segment.tier == "disk")
                self.tiers.make_room(max(self.reservation.outstanding, away))
                self.reservation.resume()
            self.bring_in()
        except BaseException:
            self.parked = True
            if self.reservation is not None:
                self.reservation.suspend()
            raise

    def bring_in(self) -> None:
        """Every segment that it holds to memory. Raises BudgetError or StorageError where they do not all fit; some
        may have come then.
        """
        for segment in self.segments():
            segment.owner.to_memory()
