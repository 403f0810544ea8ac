"""The unit of the KV cache: a span of tokens × some layers × some KV heads, in one format and one tier.

Memory is a run of pieces [layer·head][slab]; a slab is one head's tokens as `formats.kv` lays them out.
Full-precision pages of one shape lie side by side, slab by slab, as attention reads them.
A sealed segment never changes: sequences and the prefix tree share it by reference count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Bytes, Floats, Integers
from thrifty.cache.slots.tiers import Tiers
from thrifty.formats import kv
from thrifty.storage.arena import Run
from thrifty.storage.disk import Extent
from thrifty.storage.ledger import Reservation

Positions = npt.NDArray[np.int32]
Contents = tuple[Floats, Floats, Integers, Floats | None]
"""Keys, values fp32 [n, head_dim], positions int64 [n], bias fp32 [n] or None."""

INDEX = "index"
"""Ledger category of positions, logit biases and first keys, which lie outside the arena."""


SESSIONS = "sessions"
"""Ledger category of caches that conversations go on from, between two requests."""


class Segment:
    """A span of tokens. Created with one reference; `release` of the last one frees its bytes.

    layers, heads: what it holds, as model indices. tokens ≤ capacity (a multiple of 64). positions: the first token's
    position where they are consecutive, else int32 [heads, tokens]. bias: fp32 [layers, heads, capacity] added to
    the logits, or None. first_keys: (fp32 [layers, heads, tokens, head_dim], int64 [tokens]) of a renumbered segment:
    the keys and positions before the first renumbering.
    """

    __slots__ = (
        "bias", "capacity", "category", "extent", "first_keys", "format", "head_dim", "heads", "index_bytes",
        "layers", "parent", "positions", "references", "reservation", "run", "run_bytes", "slab_bytes", "tiers",
        "tokens",
    )  # fmt: skip

    def __init__(
        self,
        tiers: Tiers,
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        capacity: int,
        format: str,
        head_dim: int,
        *,
        category: str = "cache",
        reservation: Reservation | None = None,
        slab_bytes: int | None = None,
    ) -> None:
        """Takes zero-filled memory for `capacity` tokens; slab_bytes: for what is no keys and values.

        Raises BudgetError or StorageError with nothing taken.
        """
        self.tiers = tiers
        self.layers = layers
        self.heads = heads
        self.capacity = capacity
        self.format = format
        self.head_dim = head_dim
        self.tokens = 0
        self.slab_bytes = kv.slab_bytes(format, capacity, head_dim) if slab_bytes is None else slab_bytes
        self.category = category
        self.reservation = reservation
        self.positions: int | Positions = 0
        self.bias: Floats | None = None
        self.first_keys: tuple[Floats, Integers] | None = None
        self.index_bytes = 0
        self.references = 1
        self.parent: Segment | None = None
        self.extent: Extent | None = None
        self.run: Run | None = self._allocate()
        self.run_bytes = self.run.nbytes

    @classmethod
    def on_disk(
        cls,
        tiers: Tiers,
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        format: str,
        head_dim: int,
        first: int,
        slab_bytes: int | None = None,
    ) -> Segment:
        """A page of 64 tokens from position `first` on whose bytes lie on the disk tier from the start: `put` brings
        them, a layer at a time. slab_bytes: for what is no page. Raises StorageError with nothing taken.
        """
        page = object.__new__(cls)
        page.tiers, page.layers, page.heads, page.format, page.head_dim = tiers, layers, heads, format, head_dim
        page.capacity = page.tokens = kv.PAGE
        page.slab_bytes = kv.slab_bytes(format, kv.PAGE, head_dim) if slab_bytes is None else slab_bytes
        page.category, page.reservation, page.positions = "cache", None, first
        page.bias = page.first_keys = page.parent = page.run = None
        page.index_bytes, page.references = 0, 1
        nbytes = len(layers) * len(heads) * page.slab_bytes
        page.run_bytes = tiers.arena.rounded(nbytes)
        page.extent = tiers.require_disk().take(nbytes)
        return page

    def put(self, layer: int, slabs: Bytes) -> None:
        """Fill one layer of a page on disk: uint8 [heads, slab_bytes], contiguous. Raises StorageError."""
        assert self.extent is not None, "only a page on disk is filled this way"
        offset = self.place(layer, self.heads[0]) * self.slab_bytes
        self.tiers.require_disk().put(self.extent, slabs.reshape(-1), offset)

    def with_holes(self, layer: int, live: Sequence[Integers], tokens: int) -> Segment:
        """A second face of one layer of this segment, in which only the `live` slots (int64, one array a head) are
        seen: the others get a logit bias of −inf. Shares the bytes; has one reference of its own and holds one here."""
        face = object.__new__(Segment)
        for name in ("tiers", "heads", "capacity", "format", "head_dim", "slab_bytes", "category", "reservation"):
            setattr(face, name, getattr(self, name))
        face.layers, face.tokens, face.references = (layer,), tokens, 1
        face.positions, face.first_keys, face.index_bytes = self.positions, None, 0
        face.run, face.extent, face.run_bytes = None, None, 0
        face.parent = self.owner.retain()
        face.bias = np.full((1, len(self.heads), self.capacity), -np.inf, np.float32)
        for row, slots in enumerate(live):
            face.bias[0, row, slots] = (
                0.0 if self.bias is None else bias_row(self, self.bias, layer, self.heads[row])[slots]
            )
        face._charge_index(face.bias.nbytes)
        return face

    @property
    def owner(self) -> Segment:
        """The segment that holds the bytes: itself, or the one that this is a face of."""
        return self if self.parent is None else self.parent

    @property
    def holes(self) -> bool:
        """Whether it is a face, in which some slots are hidden."""
        return self.parent is not None

    @property
    def tier(self) -> str:
        """Where its bytes are: "memory" or "disk"."""
        return "memory" if self.owner.run is not None else "disk"

    @property
    def nbytes(self) -> int:
        """Bytes of its run (or of the run it will have when it returns from disk), plus its index bytes."""
        return self.owner.run_bytes + self.index_bytes

    @property
    def quantised(self) -> bool:
        """Whether slots are stored as codes."""
        return kv.is_quantised(self.format)

    def retain(self, count: int = 1) -> Segment:
        """Add references."""
        self.references += count
        return self

    def release(self, count: int = 1) -> None:
        """Drop references; at none the bytes go back to the tier and the ledger."""
        self.references -= count
        if self.references > 0:
            return
        run, extent, self.run, self.extent = self.run, self.extent, None, None
        if run is not None:
            self.tiers.arena.free(run)
        if extent is not None:
            self.tiers.require_disk().free(extent)
        self._charge_index(-self.index_bytes)
        self.bias = self.first_keys = None
        if self.parent is not None:
            self.parent.release()

    def slab(self, layer: int, head: int) -> Bytes:
        """uint8 [slab_bytes] of one layer and head: shared memory, or a copy read from disk."""
        if self.parent is not None:
            return self.parent.slab(layer, head)
        place = self.place(layer, head)
        if self.run is not None:
            return self.run.pieces[place]
        copy = np.empty(self.slab_bytes, np.uint8)
        if self.extent is None:
            raise RuntimeError("a segment was read after it was freed")
        self.tiers.require_disk().read(self.extent, copy, place * self.slab_bytes)
        return copy

    def slabs(self, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> Bytes:
        """uint8 [layers·heads, slab_bytes], layer by layer: shared memory for whole runs or whole layers, else
        copies.
        """
        owner = self.owner
        which = owner.layers if layers is None else tuple(layers)
        rows = owner.heads if heads is None else tuple(heads)
        if owner.run is None and owner.extent is not None and rows == owner.heads and len(which) == 1:
            copy = np.empty((len(rows), owner.slab_bytes), np.uint8)
            owner.tiers.require_disk().read(
                owner.extent, copy.reshape(-1), owner.place(which[0], rows[0]) * owner.slab_bytes
            )
            return copy
        if owner.run is None:
            return np.stack([owner.slab(layer, head) for layer in which for head in rows])
        pieces = owner.run.pieces
        if rows == owner.heads:
            if which == owner.layers:
                return pieces[:, : owner.slab_bytes]  # a single piece is rounded to whole pages of memory
            if len(which) == 1:
                first = owner.layers.index(which[0]) * len(rows)
                return pieces[first : first + len(rows)]
        every = pieces.reshape(len(owner.layers), len(owner.heads), -1)
        if which != owner.layers:
            places = [owner.layers.index(layer) for layer in which]
            every = every[places[0] : places[0] + 1] if len(places) == 1 else every[places]
        if rows != owner.heads:
            every = every[:, [owner.heads.index(head) for head in rows]]
        return every.reshape(len(which) * len(rows), -1)

    def read(self, layer: int, head: int, count: int | None = None) -> Contents:
        """The first `count` tokens (default all) of one layer and head.

        Returns keys, values fp32 [n, head_dim], positions int64 [n], bias fp32 [n] or None: copies.
        """
        count = self.tokens if count is None else count
        keys, values = kv.read(self.format, self.slab(layer, head), self.capacity, self.head_dim, 0, count)
        bias = None if self.bias is None else bias_row(self, self.bias, layer, head)[:count].copy()
        return keys, values, self.positions_of(head, count), bias

    def positions_of(self, head: int, count: int | None = None) -> Integers:
        """int64 [n]: positions of the first `count` tokens of one head."""
        count = self.tokens if count is None else count
        if isinstance(self.positions, int):
            return np.arange(self.positions, self.positions + count)
        return self.positions[self.heads.index(head), :count].astype(np.int64)

    def write(self, layer: int, head: int, start: int, keys: Floats, values: Floats) -> None:
        """Fill slots from `start`; only before the segment is sealed (shared)."""
        kv.write(self.format, self.slab(layer, head), self.capacity, self.head_dim, start, keys, values)

    def set_positions(self, per_head: Sequence[Integers]) -> None:
        """Record positions, int64 [tokens] a head; consecutive ones cost no bytes."""
        positions = np.array(per_head, np.int32)
        first = int(positions[0, 0]) if positions.size else 0
        if (positions == np.arange(first, first + self.tokens, dtype=np.int32)).all():
            self.positions = first
            return
        self.positions = positions
        self._charge_index(positions.nbytes)

    def set_bias(self, layer: int, head: int, bias: Floats) -> None:
        """Record logit biases fp32 [n] of the first n tokens of one layer and head; the others are 0."""
        if self.bias is None:
            self.bias = np.zeros((len(self.layers), len(self.heads), self.capacity), np.float32)
            self._charge_index(self.bias.nbytes)
        bias_row(self, self.bias, layer, head)[: len(bias)] = bias

    def set_first_keys(self, keys: Floats, positions: Integers) -> None:
        """Remember the keys [layers, heads, tokens, head_dim] and positions [tokens] before a renumbering."""
        self.first_keys = (keys, positions)
        self._charge_index(keys.nbytes + positions.nbytes)

    def copy_from(self, other: Segment) -> None:
        """Take over the bytes of a segment of the same shape, also from disk. Raises StorageError."""
        if self.run is not None and other.extent is not None and self.run.nbytes == other.nbytes:
            return other._read(other.extent, self.run.pieces)
        if self.run is None or other.run is None or self.run.pieces.shape != other.run.pieces.shape:
            raise RuntimeError("segments of different shapes, or outside memory")
        self.run.pieces[...] = other.run.pieces

    def recategorise(self, category: str) -> None:
        """Charge its bytes to another category of the ledger."""
        if self.run is not None:
            self.tiers.arena.recategorise(self.run, category)
        self.category = category

    def to_disk(self) -> int:
        """Move to the disk tier; returns the memory freed. Raises StorageError with the segment still in memory."""
        if self.run is None:
            return 0
        run = self.run
        extent = self.tiers.require_disk().write(run.pieces.reshape(-1))
        self.run, self.extent = None, extent
        self.tiers.arena.free(run)
        return run.nbytes

    def to_memory(self) -> None:
        """Return from the disk tier. Raises BudgetError or StorageError with the segment still on disk."""
        extent = self.extent
        if extent is None:
            return
        run = self._allocate()
        try:
            self._read(extent, run.pieces)
        except BaseException:
            self.tiers.arena.free(run)
            raise
        self.run, self.extent = run, None
        self.tiers.require_disk().free(extent)

    def copy_in_memory(self, reservation: Reservation | None) -> Segment:
        """The bytes of a segment on disk as one in memory, without positions and biases; it stays on disk.

        Raises BudgetError or StorageError with nothing taken.
        """
        if self.extent is None:
            raise RuntimeError("only a segment on disk is copied to memory")
        shape = (self.layers, self.heads, self.capacity, self.format, self.head_dim)
        copy = Segment(self.tiers, *shape, category="scratch", reservation=reservation)
        try:
            assert copy.run is not None, "it was just made"
            self._read(self.extent, copy.run.pieces)
        except BaseException:
            copy.release()
            raise
        return copy

    def _read(self, extent: Extent, pieces: Bytes) -> None:
        """Its bytes from disk."""
        disk = self.tiers.require_disk()
        if pieces.flags.c_contiguous:
            disk.read(extent, pieces.reshape(-1), 0)
            return
        for place, slab in enumerate(pieces):
            disk.read(extent, slab, place * self.slab_bytes)

    def _allocate(self) -> Run:
        pieces = len(self.layers) * len(self.heads)
        page = self.capacity == kv.PAGE and not self.quantised
        return self.tiers.allocate(pieces, self.slab_bytes, self.category, self.reservation, striped=page)

    def place(self, layer: int, head: int) -> int:
        """The number of a slab's piece."""
        return self.layers.index(layer) * len(self.heads) + self.heads.index(head)

    def _charge_index(self, nbytes: int) -> None:
        if nbytes > 0:
            self.tiers.charge(INDEX, nbytes, self.reservation)
        elif nbytes < 0:
            self.tiers.ledger.credit(INDEX, -nbytes, self.reservation)
        self.index_bytes += nbytes


def bias_row(segment: Segment, bias: Floats, layer: int, head: int) -> Floats:
    """One layer's and head's row of a [layers, heads, capacity] bias."""
    return bias[segment.layers.index(layer), segment.heads.index(head)]
