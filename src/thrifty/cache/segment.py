"""The unit of the KV cache: a span of tokens × some layers × some KV heads, in one format and one tier.

Memory is a run of pieces [layer·head][slab]; a slab is one head's tokens as `formats.kv` lays them out.
Full-precision pages of one shape lie side by side, slab by slab, as attention reads them.
A sealed segment never changes: sequences and the prefix tree share it by reference count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.cache.tiers import Tiers
from thrifty.formats import kv
from thrifty.storage.arena import Run
from thrifty.storage.disk import Extent
from thrifty.storage.ledger import Reservation

INDEX = "index"
"""Ledger category of positions, logit biases and first keys, which lie outside the arena."""


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
    ) -> None:
        """Takes zero-filled memory for `capacity` tokens. Raises BudgetError or StorageError with nothing taken."""
        self.tiers = tiers
        self.layers = layers
        self.heads = heads
        self.capacity = capacity
        self.format = format
        self.head_dim = head_dim
        self.tokens = 0
        self.slab_bytes = kv.slab_bytes(format, capacity, head_dim)
        self.category = category
        self.reservation = reservation
        self.positions: int | Tensor = 0
        self.bias: Tensor | None = None
        self.first_keys: tuple[Tensor, Tensor] | None = None
        self.index_bytes = 0
        self.references = 1
        self.parent: Segment | None = None
        self.extent: Extent | None = None
        self.run: Run | None = self._allocate()
        self.run_bytes = self.run.nbytes

    def with_holes(self, layer: int, live: list[Tensor], tokens: int) -> Segment:
        """A second face of one layer of this segment, in which only the `live` slots (int64, one tensor a head) are
        seen: the others get a logit bias of −inf. Shares the bytes; has one reference of its own and holds one here."""
        face = object.__new__(Segment)
        for name in ("tiers", "heads", "capacity", "format", "head_dim", "slab_bytes", "category", "reservation"):
            setattr(face, name, getattr(self, name))
        face.layers, face.tokens, face.references = (layer,), tokens, 1
        face.positions, face.first_keys, face.index_bytes = self.positions, None, 0
        face.run, face.extent, face.run_bytes = None, None, 0
        face.parent = self.owner.retain()
        face.bias = torch.full((1, len(self.heads), self.capacity), -torch.inf)
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

    def slab(self, layer: int, head: int) -> Tensor:
        """uint8 [slab_bytes] of one layer and head: shared memory, or a copy read from disk."""
        if self.parent is not None:
            return self.parent.slab(layer, head)
        place = self._place(layer, head)
        if self.run is not None:
            return self.run.pieces[place]
        copy = torch.empty(self.slab_bytes, dtype=torch.uint8)
        if self.extent is None:
            raise RuntimeError("a segment was read after it was freed")
        self.tiers.require_disk().read(self.extent, copy, place * self.slab_bytes)
        return copy

    def slabs(self, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> Tensor:
        """uint8 [layers·heads, slab_bytes], layer by layer: shared memory for whole runs or whole layers, else
        copies.
        """
        owner = self.owner
        which = owner.layers if layers is None else tuple(layers)
        rows = owner.heads if heads is None else tuple(heads)
        if owner.run is None:
            return torch.stack([owner.slab(layer, head) for layer in which for head in rows])
        every = owner.run.pieces.unflatten(0, (len(owner.layers), len(owner.heads)))
        if which != owner.layers:
            places = [owner.layers.index(layer) for layer in which]
            every = every[places[0] : places[0] + 1] if len(places) == 1 else every[places]
        if rows != owner.heads:
            every = every[:, [owner.heads.index(head) for head in rows]]
        return every.flatten(0, 1)

    def address(self, layer: int, head: int) -> int:
        """Memory address of a slab; valid until the segment moves or is freed."""
        owner = self.owner
        if owner.run is None:
            raise RuntimeError("a segment outside memory has no address")
        return owner.run.address_of(owner._place(layer, head))

    @property
    def slab_stride(self) -> int:
        """Bytes from the address of one head's slab to that of the next."""
        return self.slab_bytes if self.run is None else self.run.stride

    def bias_address(self, layer: int, head: int) -> int:
        """Memory address of a slab's logit bias, 0 where it has none."""
        return 0 if self.bias is None else bias_row(self, self.bias, layer, head).data_ptr()

    def read(self, layer: int, head: int, count: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The first `count` tokens (default all) of one layer and head.

        Returns keys, values fp32 [n, head_dim], positions int64 [n], bias fp32 [n] or None: copies.
        """
        count = self.tokens if count is None else count
        keys, values = kv.read(self.format, self.slab(layer, head), self.capacity, self.head_dim, 0, count)
        bias = None if self.bias is None else bias_row(self, self.bias, layer, head)[:count].clone()
        return keys, values, self.positions_of(head, count), bias

    def positions_of(self, head: int, count: int | None = None) -> Tensor:
        """int64 [n]: positions of the first `count` tokens of one head."""
        count = self.tokens if count is None else count
        if isinstance(self.positions, int):
            return torch.arange(self.positions, self.positions + count)
        return self.positions[self.heads.index(head), :count].long()

    def write(self, layer: int, head: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Fill slots from `start`; only before the segment is sealed (shared)."""
        kv.write(self.format, self.slab(layer, head), self.capacity, self.head_dim, start, keys, values)

    def set_positions(self, per_head: list[Tensor]) -> None:
        """Record positions, int64 [tokens] a head; consecutive ones cost no bytes."""
        first = int(per_head[0][0]) if len(per_head[0]) else 0
        line = torch.arange(first, first + self.tokens)
        if all(found is per_head[0] or torch.equal(found, per_head[0]) for found in per_head[1:]) and torch.equal(
            per_head[0], line
        ):
            self.positions = first
            return
        self.positions = torch.stack(per_head).to(torch.int32)
        self._charge_index(self.positions.nbytes)

    def set_bias(self, layer: int, head: int, bias: Tensor) -> None:
        """Record logit biases fp32 [n] of the first n tokens of one layer and head; the others are 0."""
        if self.bias is None:
            self.bias = torch.zeros(len(self.layers), len(self.heads), self.capacity)
            self._charge_index(self.bias.nbytes)
        bias_row(self, self.bias, layer, head)[: len(bias)] = bias

    def set_first_keys(self, keys: Tensor, positions: Tensor) -> None:
        """Remember the keys [layers, heads, tokens, head_dim] and positions [tokens] before a renumbering."""
        self.first_keys = (keys, positions)
        self._charge_index(keys.nbytes + positions.nbytes)

    def copy_from(self, other: Segment) -> None:
        """Take over the bytes of a segment of the same shape."""
        if self.run is None or other.run is None or self.run.pieces.shape != other.run.pieces.shape:
            raise RuntimeError("segments of different shapes, or outside memory")
        self.run.pieces.copy_(other.run.pieces)

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
            if run.pieces.is_contiguous():
                self.tiers.require_disk().read(extent, run.pieces.view(-1))
            else:
                for place, slab in enumerate(run.pieces):
                    self.tiers.require_disk().read(extent, slab, place * self.slab_bytes)
        except BaseException:
            self.tiers.arena.free(run)
            raise
        self.run, self.extent = run, None
        self.tiers.require_disk().free(extent)

    def _allocate(self) -> Run:
        pieces = len(self.layers) * len(self.heads)
        page = self.capacity == kv.PAGE and not self.quantised
        return self.tiers.allocate(pieces, self.slab_bytes, self.category, self.reservation, striped=page)

    def _place(self, layer: int, head: int) -> int:
        """The number of a slab's piece."""
        return self.layers.index(layer) * len(self.heads) + self.heads.index(head)

    def _charge_index(self, nbytes: int) -> None:
        if nbytes > 0:
            self.tiers.ledger.charge(INDEX, nbytes, self.reservation)
        elif nbytes < 0:
            self.tiers.ledger.credit(INDEX, -nbytes, self.reservation)
        self.index_bytes += nbytes


def bias_row(segment: Segment, bias: Tensor, layer: int, head: int) -> Tensor:
    """One layer's and head's row of a [layers, heads, capacity] bias."""
    return bias[segment.layers.index(layer), segment.heads.index(head)]


@dataclass(frozen=True, slots=True)
class Span:
    """The first `tokens` slots of a segment, as a view holds them. One object serves all layers of the segment.

    source: the layer whose slabs are read where a layer shares another's cache; None for its own.
    """

    segment: Segment
    tokens: int
    source: int | None = None

    def layer(self, layer: int) -> int:
        """The layer to read on behalf of `layer`."""
        return layer if self.source is None else self.source

    def holds(self, head: int) -> bool:
        """Whether the segment holds this KV head."""
        return head in self.segment.heads

    def read(self, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Keys, values fp32 [n, head_dim], positions int64 [n], bias fp32 [n] or None, holes left out."""
        keys, values, positions, bias = self.segment.read(self.layer(layer), head, self.tokens)
        live = self.live(layer, head)
        if live is None:
            return keys, values, positions, bias
        return keys[live], values[live], positions[live], None if bias is None else bias[live]

    def live(self, layer: int, head: int) -> Tensor | None:
        """int64: the slots of one head that are not holes; None where there are no holes."""
        segment = self.segment
        if segment.parent is None or segment.bias is None:
            return None
        row = bias_row(segment, segment.bias, self.layer(layer), head)[: self.tokens]
        return torch.nonzero(row > -torch.inf).flatten()

    def count(self, layer: int, head: int) -> int:
        """Slots of one head, holes left out; 0 where the segment does not hold the head."""
        if head not in self.segment.heads:
            return 0
        live = self.live(layer, head)
        return self.tokens if live is None else len(live)
