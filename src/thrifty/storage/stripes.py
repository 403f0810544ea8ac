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

    def __init__(self, pieces: int, nbytes: int, reserve: int, needed: int) -> None:
        """reserve: bytes of address space; at least `needed`. Raises StorageError where the system refuses them."""
        slot = pieces * nbytes
        self.mapping = Mapping(max(reserve, slot), max(needed, slot))
        slots = self.mapping.nbytes // slot
        self.pieces = pieces
        self.nbytes = nbytes
        self.stride = slots * nbytes
        self._slots = Extents(slots, 1)
        self._returned: list[int] = []

    def take(self) -> int | None:
        """The lowest free slot that leaves long free ranges whole, None where all are taken."""
        return self._slots.take(1)

    def give(self, slot: int) -> None:
        """Take a slot back; its memory goes to the system at the next `settle`, and the slot is free after it."""
        self._returned.append(slot)

    def settle(self) -> None:
        """Return what was given since: slots side by side in one call a piece."""
        if not self._returned:
            return
        returned, self._returned = sorted(self._returned), []
        starts = [slot for index, slot in enumerate(returned) if index == 0 or returned[index - 1] != slot - 1]
        stops = [slot + 1 for index, slot in enumerate(returned) if returned[index + 1 : index + 2] != [slot + 1]]
        for start, stop in zip(starts, stops, strict=True):
            self._slots.give(start, stop - start)
            for piece in range(self.pieces):
                self.mapping.give_back(piece * self.stride + start * self.nbytes, (stop - start) * self.nbytes)

    def tensor(self, slot: int) -> Tensor:
        """uint8 [pieces, nbytes] of a slot, sharing its memory."""
        whole = self.mapping.tensor[: self.pieces * self.stride].view(self.pieces, self.stride)
        return whole[:, slot * self.nbytes : (slot + 1) * self.nbytes]
