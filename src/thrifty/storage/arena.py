"""Reserved memory, handed out in page-aligned runs and really given back.

Ranges are anonymous and reserved without being committed: only pages that were written take memory, and a freed
run's pages return to the system (MADV_DONTNEED) at once, or when what is done `together` is done, so that process
memory falls with the ledger.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager

from torch import Tensor

from thrifty.errors import StorageError
from thrifty.storage.budget import format_size
from thrifty.storage.extents import Extents
from thrifty.storage.ledger import Ledger, Reservation
from thrifty.storage.mapping import Mapping
from thrifty.storage.stale import Stale
from thrifty.storage.stripes import Stripes

DEFAULT_RESERVE = 1 << 36


class Run:
    """Page-aligned memory of an arena, in equal pieces. Valid until `Arena.free`; it is zero-filled at first.

    pieces: uint8 [count, bytes], sharing its memory; in rows that may lie apart.
    """

    __slots__ = ("address", "category", "nbytes", "pieces", "reservation", "start", "stride", "stripes")

    def __init__(
        self,
        pieces: Tensor,
        start: int,
        nbytes: int,
        category: str,
        reservation: Reservation | None,
        stripes: Stripes | None = None,
    ) -> None:
        """start: in the arena's range, or the slot among `stripes`."""
        self.pieces = pieces
        self.address: int = pieces.data_ptr()
        """Memory address of the first piece."""
        self.stride: int = pieces.stride(0)
        """Bytes from one piece to the next."""
        self.start = start
        self.nbytes = nbytes
        self.category = category
        self.reservation = reservation
        self.stripes = stripes

    def address_of(self, piece: int) -> int:
        """Memory address of a piece."""
        return self.address + piece * self.stride


class Arena:
    """Runs of one tier's memory, charged to a ledger as they are taken. Methods may be called from any thread."""

    def __init__(self, ledger: Ledger, reserve: int = DEFAULT_RESERVE) -> None:
        """reserve: bytes of address space, a bound on what can be taken; it costs nothing by itself.

        Raises StorageError where the system refuses the reservation.
        """
        self.page = mmap.PAGESIZE
        self.ledger = ledger
        self._mapping = Mapping(reserve)
        self._extents = Extents(self._mapping.nbytes, self.page)
        self._stripes: dict[tuple[int, int], Stripes] = {}
        self._striped = 0
        self._together = 0
        self._stale = Stale()
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """Bytes in runs."""
        return self._extents.used + self._striped

    def rounded(self, nbytes: int) -> int:
        """The bytes that a run of `nbytes` takes: whole pages."""
        return self._extents.rounded(nbytes)

    def allocate(
        self,
        nbytes: int,
        category: str,
        reservation: Reservation | None = None,
        *,
        pieces: int = 1,
        striped: bool = False,
    ) -> Run:
        """A zero-filled run of `pieces` pieces of `nbytes` each, back to back.

        striped: there will be many runs of this shape, whose pieces of one number are read one after the other. They
        are laid side by side then, where a piece is whole memory pages.
        Raises BudgetError where the ledger refuses it, StorageError where the address space is full. Nothing changes
        then.
        """
        size = self.rounded(pieces * nbytes)
        with self._lock:
            self.ledger.charge(category, size, reservation)
            try:
                if striped and pieces > 1 and nbytes % self.page == 0:
                    return self._take_slot(pieces, nbytes, category, reservation)
                return self._take_range(pieces, nbytes, category, reservation)
            except BaseException:
                self.ledger.credit(category, size, reservation)
                raise

    def _take_range(self, pieces: int, nbytes: int, category: str, reservation: Reservation | None) -> Run:
        size = self.rounded(pieces * nbytes)
        start = self._extents.take(size)
        if start is None:
            raise self._full(size, self._extents.largest)
        used = size if pieces == 1 else pieces * nbytes
        memory = self._mapping.tensor[start : start + used].view(pieces, -1)
        if self._stale.take(start, size):
            memory.zero_()
        return Run(memory, start, size, category, reservation)

    def _take_slot(self, pieces: int, nbytes: int, category: str, reservation: Reservation | None) -> Run:
        stripes = self._stripes.get((pieces, nbytes))
        if stripes is None:
            stripes = self._stripes[pieces, nbytes] = Stripes(pieces, nbytes, self._mapping.nbytes)
        room = self._mapping.nbytes - self.used
        slot = stripes.take() if room >= pieces * nbytes else None
        if slot is None:
            raise self._full(pieces * nbytes, max(0, room))
        self._striped += pieces * nbytes
        return Run(stripes.tensor(slot), slot, pieces * nbytes, category, reservation, stripes)

    def _full(self, size: int, largest: int) -> StorageError:
        return StorageError(
            f"the arena has no free range of {format_size(size)}: {format_size(self.used)} of "
            f"{format_size(self._mapping.nbytes)} are used; the largest that fits is {format_size(largest)}"
        )

    def free(self, run: Run) -> None:
        """Give a run back, to the ledger and to the system. Its tensors must not be used afterwards.

        Where the system does not take its pages, the run is free all the same; they are offered again with the next.
        """
        with self._lock:
            if run.stripes is not None:
                run.stripes.give(run.start)
                self._striped -= run.nbytes
            else:
                self._extents.give(run.start, run.nbytes)
                self._stale.add(run.start, run.nbytes)
            self.ledger.credit(run.category, run.nbytes, run.reservation)
            if not self._together:
                self._settle()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Runs that are freed within it go back to the system at its end, neighbours in one call: much faster than one
        by one where there are many; and one that is taken meanwhile finds their pages. The ledger knows at once."""
        with self._lock:
            self._together += 1
        try:
            yield
        finally:
            with self._lock:
                self._together -= 1
                if not self._together:
                    self._settle()

    def reclaim(self, runs: Collection[Run]) -> None:
        """Only these runs are in use: whatever else was handed out is free, and its pages go to the system. The ledger
        is not told: see `Ledger.restate`.
        """
        with self._lock:
            taken = [(run.start, run.nbytes) for run in runs if run.stripes is None]
            self._extents = Extents(self._mapping.nbytes, self.page, taken)
            self._striped = sum(run.nbytes for run in runs if run.stripes is not None)
            for stripes in self._stripes.values():
                stripes.reclaim(run.start for run in runs if run.stripes is stripes)
            for start, nbytes in self._extents.free():
                self._mapping.give_back(start, nbytes)
            self._stale = Stale()

    def _settle(self) -> None:
        """Give the pages of freed runs back. What an error leaves is given back the next time, or used again."""
        for stripes in self._stripes.values():
            stripes.settle()
        with closing(self._stale.drain()) as ranges:
            for start, nbytes in ranges:
                self._mapping.give_back(start, nbytes)

    def recategorise(self, run: Run, category: str) -> None:
        """Charge a run to another category, outside any reservation."""
        with self._lock:
            self.ledger.recategorise(run.category, category, run.nbytes)
            run.category = category

    def resident(self) -> int:
        """Bytes of the arena that are in memory now, as the system counts them (slow: for tests and reports)."""
        return self._mapping.resident() + sum(stripes.mapping.resident() for stripes in self._stripes.values())
