"""Memory for many runs of the same shape: piece i of neighbouring runs are neighbours.

A page of the KV cache is one run of a slab for every layer and head. Attention reads one layer and head of all
pages, so these slabs lie next to each other and are read as one stream (`benchmarks/attention_stripes.py`).
"""

from __future__ import annotations

from torch import Tensor

from thrifty.storage.extents import Extents
from thrifty.storage.mapping import Mapping


class Stripes:
    """Slots of `pieces` pieces of `nbytes` each (whole memory pages). Not safe for threads: the arena locks."""

    def __init__(self, pieces: int, nbytes: int, reserve: int) -> None:
        """reserve: bytes of address space. Raises StorageError where the system refuses them."""
        slots = max(1, reserve // (pieces * nbytes))
        self.pieces = pieces
        self.nbytes = nbytes
        self.stride = slots * nbytes
        self.mapping = Mapping(pieces * self.stride)
        self._slots = Extents(slots, 1)

    def take(self) -> int | None:
        """The lowest free slot that leaves long free ranges whole, None where all are taken."""
        return self._slots.take(1)

    def give(self, slot: int) -> None:
        """Take a slot back; its memory goes to the system."""
        self._slots.give(slot, 1)
        for piece in range(self.pieces):
            self.mapping.give_back(piece * self.stride + slot * self.nbytes, self.nbytes)

    def tensor(self, slot: int) -> Tensor:
        """uint8 [pieces, nbytes] of a slot, sharing its memory."""
        return self.mapping.tensor.view(self.pieces, self.stride)[:, slot * self.nbytes : (slot + 1) * self.nbytes]
