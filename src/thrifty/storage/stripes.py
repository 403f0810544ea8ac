"""Memory for many runs of the same shape: piece i of neighbouring runs are neighbours.

A page of the KV cache is one run of a slab for every layer and head. Attention reads one layer and head of all
pages, so these slabs lie next to each other and are read as one stream (`benchmarks/attention_stripes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from thrifty.arrays import Bytes
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
        self._returned: set[int] = set()

    def take(self) -> int | None:
        """The lowest free slot that leaves long free ranges whole, None where all are taken."""
        return self._slots.take(1)

    def give(self, slot: int) -> None:
        """Take a slot back; its memory goes to the system at the next `settle`, and the slot is free after it."""
        self._returned.add(slot)

    def settle(self) -> None:
        """Return what was given since: slots side by side in one call a piece. What an error leaves comes next time."""
        if not self._returned:
            return
        returned = sorted(self._returned)
        starts = [slot for index, slot in enumerate(returned) if index == 0 or returned[index - 1] != slot - 1]
        stops = [slot + 1 for index, slot in enumerate(returned) if returned[index + 1 : index + 2] != [slot + 1]]
        for start, stop in zip(starts, stops, strict=True):
            self._clear(start, stop)
            self._slots.give(start, stop - start)
            self._returned.difference_update(range(start, stop))

    def reclaim(self, slots: Iterable[int]) -> None:
        """Only these are taken: all others are free, and their memory goes to the system."""
        self._slots = Extents(self._slots.size, 1, [(slot, 1) for slot in slots])
        self._returned = set()
        for start, count in self._slots.free():
            self._clear(start, start + count)

    def _clear(self, start: int, stop: int) -> None:
        for piece in range(self.pieces):
            self.mapping.give_back(piece * self.stride + start * self.nbytes, (stop - start) * self.nbytes)

    def slots(self, slot: int) -> Bytes:
        """uint8 [pieces, nbytes] of a slot, sharing its memory."""
        whole = self.mapping.memory[: self.pieces * self.stride].reshape(self.pieces, self.stride)
        return whole[:, slot * self.nbytes : (slot + 1) * self.nbytes]
