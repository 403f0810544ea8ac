"""Reserved memory, handed out in page-aligned runs and really given back.

Ranges are anonymous and reserved without being committed: only pages that were written take memory, and a freed
run's pages return to the system (MADV_DONTNEED) at once, or when what is done `together` is done, so that process
memory falls with the ledger.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager

from thrifty.arrays import Bytes
from thrifty.errors import StorageError
from thrifty.storage.budget import format_size
from thrifty.storage.extents import Extents
from thrifty.storage.ledger import Ledger, Reservation
from thrifty.storage.mapping import Mapping
from thrifty.storage.stale import Stale
from thrifty.storage.stripes import Stripes

DEFAULT_RESERVE = 1 << 36
_HOLES = 16  # address space a byte of budget: runs of 4 kB to 64 MB leave holes between them
_LOG = logging.getLogger(__name__)


class Run:
    """Page-aligned memory of an arena, in equal pieces. Valid until `Arena.free`; it is zero-filled at first.

    pieces: uint8 [count, bytes], sharing its memory; in rows that may lie apart.
    """

    __slots__ = ("category", "nbytes", "pieces", "reservation", "start", "stripes")

    def __init__(
        self,
        pieces: Bytes,
        start: int,
        nbytes: int,
        category: str,
        reservation: Reservation | None,
        stripes: Stripes | None = None,
    ) -> None:
        """start: in the arena's range, or the slot among `stripes`."""
        self.pieces = pieces
        self.start = start
        self.nbytes = nbytes
        self.category = category
        self.reservation = reservation
        self.stripes = stripes


class Arena:
    """Runs of one tier's memory, charged to a ledger as they are taken. Methods may be called from any thread."""

    def __init__(self, ledger: Ledger, reserve: int | None = None, outside: int = 0) -> None:
        """reserve: bytes of address space, a bound on what can be taken; it costs nothing by itself. By default it
        follows what the ledger's budget leaves, with room for holes; 64 GiB without a budget. Where the system limits
        address space it is less, down to what the budget leaves. outside: bytes of the budget that are not for runs.

        Raises StorageError where the system refuses that.
        """
        self.page = mmap.PAGESIZE
        self.ledger = ledger
        budget = ledger.available
        if reserve is None:
            reserve = DEFAULT_RESERVE if budget is None else _HOLES * max(budget - outside, self.page)
        self._needed = self.page if budget is None else min(reserve, max(budget - outside, self.page))
        self._mapping = Mapping(reserve, self._needed)
        self._extents = Extents(self._mapping.nbytes, self.page)
        self._stripes: dict[tuple[int, int], Stripes | None] = {}
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
                    stripes = self._stripes_of(pieces, nbytes)
                    if stripes is not None:
                        return self._take_slot(stripes, category, reservation)
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
        memory = self._mapping.memory[start : start + used].reshape(pieces, -1)
        if self._stale.take(start, size):
            memory.fill(0)
        return Run(memory, start, size, category, reservation)

    def _stripes_of(self, pieces: int, nbytes: int) -> Stripes | None:
        """Where runs of this shape lie side by side; None where the system has no address space left for it: they are
        ranges then, read a little slower.
        """
        shape = (pieces, nbytes)
        if shape not in self._stripes:
            try:
                self._stripes[shape] = Stripes(pieces, nbytes, self._mapping.nbytes, self._needed)
            except StorageError as error:
                _LOG.debug("pages of %d × %d bytes are not laid side by side: %s", pieces, nbytes, error)
                self._stripes[shape] = None
        return self._stripes[shape]

    def _take_slot(self, stripes: Stripes, category: str, reservation: Reservation | None) -> Run:
        size = stripes.pieces * stripes.nbytes
        room = self._mapping.nbytes - self.used
        slot = stripes.take() if room >= size else None
        if slot is None:
            raise self._full(size, max(0, room))
        self._striped += size
        return Run(stripes.slots(slot), slot, size, category, reservation, stripes)

    def _full(self, size: int, largest: int) -> StorageError:
        return StorageError(
            f"the arena has no free range of {format_size(size)}: {format_size(self.used)} of "
            f"{format_size(self._mapping.nbytes)} are used; the largest that fits is {format_size(largest)}"
        )

    def free(self, run: Run) -> None:
        """Give a run back, to the ledger and to the system. Its arrays must not be used afterwards.

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
            for stripes in filter(None, self._stripes.values()):
                stripes.reclaim(run.start for run in runs if run.stripes is stripes)
            for start, nbytes in self._extents.free():
                self._mapping.give_back(start, nbytes)
            self._stale = Stale()

    def _settle(self) -> None:
        """Give the pages of freed runs back. What an error leaves is given back the next time, or used again."""
        for stripes in filter(None, self._stripes.values()):
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
        striped = (stripes.mapping.resident() for stripes in self._stripes.values() if stripes is not None)
        return self._mapping.resident() + sum(striped)
