"""One reserved range of memory, handed out in page-aligned runs and really given back.

The range is anonymous and reserved without being committed: only pages that were written take memory, and a freed
run's pages return to the system at once (MADV_DONTNEED), so that process memory falls with the ledger.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from pathlib import Path

import torch
from torch import Tensor

from thrifty.errors import StorageError
from thrifty.storage.budget import format_size
from thrifty.storage.extents import Extents
from thrifty.storage.ledger import Ledger, Reservation

_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13
DEFAULT_RESERVE = 1 << 36


class Run:
    """A page-aligned piece of an arena. `address` stays valid until `Arena.free`; it is zero-filled at first."""

    __slots__ = ("address", "arena", "bytes", "category", "nbytes", "reservation", "start")

    def __init__(self, arena: Arena, start: int, nbytes: int, category: str, reservation: Reservation | None) -> None:
        self.arena = arena
        self.start = start
        self.nbytes = nbytes
        self.address = arena.address + start
        self.category = category
        self.reservation = reservation
        self.bytes: Tensor = arena.tensor[start : start + nbytes]
        """The run as uint8 [nbytes], sharing its memory."""


class Arena:
    """Runs of one tier's memory, charged to a ledger as they are taken. Methods may be called from any thread."""

    def __init__(self, ledger: Ledger, reserve: int = DEFAULT_RESERVE) -> None:
        """reserve: bytes of address space, a bound on what can be taken; it costs nothing by itself.

        Raises StorageError where the system refuses the reservation.
        """
        self.page = mmap.PAGESIZE
        size = -(-reserve // self.page) * self.page
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._map = mmap.mmap(-1, size, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise StorageError(
                f"cannot reserve {format_size(size)} of address space: {error}. "
                "Give a smaller reserve or raise `ulimit -v`"
            ) from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with contextlib.suppress(OSError):  # kernels without huge pages have nothing to switch off
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.ledger = ledger
        self.tensor = torch.frombuffer(self._map, dtype=torch.uint8)
        self.address = self.tensor.data_ptr()
        self._extents = Extents(size, self.page)
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """Bytes in runs."""
        return self._extents.used

    def rounded(self, nbytes: int) -> int:
        """The bytes that a run of `nbytes` takes: whole pages."""
        return self._extents.rounded(nbytes)

    def allocate(self, nbytes: int, category: str, reservation: Reservation | None = None) -> Run:
        """A zero-filled run of at least `nbytes`.

        Raises BudgetError where the ledger refuses it, StorageError where the address space is full. Nothing changes
        then.
        """
        size = self.rounded(nbytes)
        with self._lock:
            self.ledger.charge(category, size, reservation)
            start = self._extents.take(size)
            if start is None:
                self.ledger.credit(category, size, reservation)
                raise StorageError(
                    f"the arena has no free range of {format_size(size)}: {format_size(self.used)} of "
                    f"{format_size(self._extents.size)} are used; the largest that fits is "
                    f"{format_size(self._extents.largest)}"
                )
            return Run(self, start, size, category, reservation)

    def free(self, run: Run) -> None:
        """Give a run back, to the ledger and to the system. Its tensors must not be used afterwards."""
        with self._lock:
            self._extents.give(run.start, run.nbytes)
            self._map.madvise(mmap.MADV_DONTNEED, run.start, run.nbytes)
            self.ledger.credit(run.category, run.nbytes, run.reservation)

    def recategorise(self, run: Run, category: str) -> None:
        """Charge a run to another category, outside any reservation."""
        with self._lock:
            self.ledger.recategorise(run.category, category, run.nbytes)
            run.category = category

    def resident(self) -> int:
        """Bytes of the arena that are in memory now, as the system counts them (slow: for tests and reports)."""
        pages = self._extents.size // self.page
        block = 1 << 18
        total = 0
        library = ctypes.CDLL(None, use_errno=True)
        for first in range(0, pages, block):
            count = min(block, pages - first)
            state = (ctypes.c_ubyte * count)()
            address = ctypes.c_void_p(self.address + first * self.page)
            if library.mincore(address, ctypes.c_size_t(count * self.page), state):
                raise StorageError(f"mincore failed: errno {ctypes.get_errno()}")
            total += sum(bytes(state)) if max(state) <= 1 else sum(byte & 1 for byte in state)
        return total * self.page


def process_memory() -> int:
    """Resident bytes of this process, as the system counts them."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * mmap.PAGESIZE
