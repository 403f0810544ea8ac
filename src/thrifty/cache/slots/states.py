"""The recurrent states of one sequence: what layers hold that keep no slots.

A state is fp32 numbers of a fixed size a layer. Two buffers hold all of them: `committed`, and `newest`, into which
rows are computed until they are committed; then a layer's buffers change places. So a step that fails changes nothing,
and rows can be dropped all together, not some of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.tiers import Tiers
from thrifty.errors import BudgetError, PromptError, StorageError
from thrifty.formats.kv import ALIGNMENT
from thrifty.storage.ledger import Reservation


def slab_bytes(model: ModelInfo) -> int:
    """Bytes of one layer's state in a segment: those of the largest, aligned."""
    return -(-4 * max(model.states, default=0) // ALIGNMENT) * ALIGNMENT


class RecurrentStates:
    """pending: by layer, rows since the last commit; while there is a native view, it knows them instead.

    snapshot: the states at an earlier length (its `positions`), for the prefix tree; shared, never changed. A mere
    convenience: it is in no promise, and whoever lacks room may drop it. snapshots: whether `commit` keeps one.
    origin: the snapshot that the sequence is about to go on from.
    """

    def __init__(self, tiers: Tiers, model: ModelInfo, reservation: Reservation | None) -> None:
        self.pending: dict[int, int] = {}
        self.snapshot: Segment | None = None
        self.origin: Segment | None = None
        self.snapshots = False
        self._tiers = tiers
        self._model = model
        self._reservation = reservation
        self._buffers: list[Segment] = []
        self._committed = dict.fromkeys(model.state_layers, 0)  # which of the buffers

    def open(self) -> None:
        """Take both buffers, filled with zeros: what a sequence begins with. Raises BudgetError or StorageError."""
        while len(self._buffers) < 2:
            self._buffers.append(self._segment(self._reservation))

    def segments(self) -> Iterator[Segment]:
        """What it holds, one a reference."""
        yield from self._buffers
        yield from (segment for segment in (self.origin, self.snapshot) if segment is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of its segments, in any tier."""
        return sum(segment.nbytes for segment in self.segments())

    # --- rows ----------------------------------------------------------------------------------------

    def read(self, layer: int) -> Floats:
        """fp32 [numbers]: a layer's state after its newest rows; shares its memory."""
        return self._numbers(layer, newest=self.pending.get(layer, 0) > 0)

    def write(self, layer: int, state: Floats, rows: int) -> None:
        """A layer's state fp32 [numbers] after `rows` more rows, which are not committed yet."""
        self._numbers(layer, newest=True)[...] = state
        self.pending[layer] = self.pending.get(layer, 0) + rows

    def show(self, view: Any) -> None:
        """Give a native View the buffers, and the rows since the last commit."""
        for layer in self._model.state_layers:
            committed, newest = self._numbers(layer, newest=False), self._numbers(layer, newest=True)
            view.set_state(layer, committed, newest, self.pending.get(layer, 0))
        self.pending = {}

    def take_over(self, view: Any) -> None:
        """The rows that a view knows of, before it goes."""
        rows = {layer: int(view.tokens(layer, 0)) for layer in self._model.state_layers}
        self.pending = {layer: count for layer, count in rows.items() if count}

    def commit(self, n: int, view: Any) -> None:
        """The n newest rows stay. Raises PromptError where a layer has had another number of them."""
        for layer in self._model.state_layers:
            rows = self.rows(layer, view)
            if rows != n:
                raise PromptError(
                    f"commit({n}): the state of layer {layer} has seen {rows} rows; discard or append first"
                )
        for layer in self._model.state_layers:
            self.commit_layer(layer, view)

    def rows(self, layer: int, view: Any) -> int:
        """Rows of a layer since it was committed. view: the native View, None where there is none."""
        return self.pending.get(layer, 0) if view is None else int(view.tokens(layer, 0))

    def commit_layer(self, layer: int, view: Any) -> None:
        """What its newest rows made of one layer's state stays."""
        rows = self.rows(layer, view)
        self.pending.pop(layer, None)
        if view is not None:
            view.commit_states(layer)
        if rows:
            self._committed[layer] = 1 - self._committed[layer]

    def check_drop(self, n: int, open_rows: int) -> None:
        """Raise PromptError where n rows are not all that are not committed."""
        if n != open_rows:
            raise PromptError(
                f"recurrent layers cannot drop {n} rows of {open_rows} that are not committed: their state goes back "
                "to the last commit alone; decode without drafts"
            )

    def discard(self) -> None:
        """Forget all rows since the last commit. (A native view forgets its own.)"""
        self.pending = {}

    # --- snapshots -----------------------------------------------------------------------------------

    def take_snapshot(self, length: int) -> None:
        """Keep a copy of what is committed, at `length` tokens. Without effect where its bytes are not to spare, in the
        budget or in the owner's own bound.
        """
        self.drop_snapshot()
        available = self._tiers.ledger.available
        if (available is not None and available < self._buffers[0].run_bytes) or not self._within_bound(0):
            return
        try:
            copy = self._segment(None)
        except (BudgetError, StorageError):
            return
        copy.positions = length
        self._copy_committed(copy)
        self.snapshot = copy

    def drop_snapshot(self) -> None:
        """Let the snapshot go."""
        snapshot, self.snapshot = self.snapshot, None
        if snapshot is not None:
            snapshot.release()

    def make_way(self, nbytes: int) -> None:
        """The sequence takes `nbytes` more: the snapshot goes where the owner's own bound does not hold both."""
        if self.snapshot is not None and not self._within_bound(nbytes):
            self.drop_snapshot()

    def stop_snapshots(self) -> None:
        """Nobody will ask for a snapshot any more."""
        self.snapshots = False
        self.drop_snapshot()

    def begin_at(self, snapshot: Segment) -> None:
        """Hold a snapshot, in whatever tier, until `restore` or `drop_origin`."""
        self.origin = snapshot.retain()

    def restore(self) -> None:
        """Go on from what it was to begin at, which is in memory. Without effect where there is no such snapshot."""
        if self.origin is None:
            return
        self.pending = {}
        for layer in self._model.state_layers:
            self._numbers(layer, newest=False)[...] = self._of(self.origin, layer)
        self.drop_origin()

    def drop_origin(self) -> None:
        """Let go of what it was to begin at."""
        origin, self.origin = self.origin, None
        if origin is not None:
            origin.release()

    def copy_from(self, other: RecurrentStates) -> None:
        """Take both buffers and begin with what another sequence has committed. Raises BudgetError or StorageError."""
        self.open()
        other._copy_committed(self._buffers[0])
        self.snapshots = other.snapshots
        if other.snapshot is not None and self._within_bound(0):
            self.snapshot = other.snapshot.retain()

    def close(self) -> None:
        """Give everything back."""
        self.drop_snapshot()
        self.drop_origin()
        while self._buffers:
            self._buffers.pop().release()
        self.pending = {}

    # --- inside --------------------------------------------------------------------------------------

    def _within_bound(self, nbytes: int) -> bool:
        """Whether the owner's own bound holds a snapshot beside what is promised, and beside `nbytes` more than now."""
        owner = self._reservation
        if owner is None or owner.limit is None:
            return True
        return max(owner.nbytes, owner.used + nbytes) + self._buffers[0].run_bytes <= owner.limit

    def _segment(self, reservation: Reservation | None) -> Segment:
        layers, nbytes = self._model.state_layers, slab_bytes(self._model)
        return Segment(self._tiers, layers, (0,), 0, "f32", 0, reservation=reservation, slab_bytes=nbytes)

    def _numbers(self, layer: int, *, newest: bool) -> Floats:
        if not self._buffers:
            raise RuntimeError("recurrent states were used before they were opened")
        return self._of(self._buffers[self._committed[layer] ^ newest], layer)

    def _of(self, segment: Segment, layer: int) -> Floats:
        if segment.run is None:
            raise RuntimeError("recurrent states were used while they lie on disk: resume the sequence first")
        numbers: Floats = segment.slab(layer, 0).view(np.float32)[: self._model.states[layer]]
        return numbers

    def _copy_committed(self, segment: Segment) -> None:
        for layer in self._model.state_layers:
            self._of(segment, layer)[...] = self._numbers(layer, newest=False)
