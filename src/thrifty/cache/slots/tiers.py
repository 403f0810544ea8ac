"""The storage that the segments of one cache share: arena, disk tier and ledger behind one door."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from thrifty.errors import BudgetError, StorageError
from thrifty.storage.arena import Arena, Run
from thrifty.storage.disk import DiskTier
from thrifty.storage.ledger import Ledger, Reservation


class Tiers:
    """Memory (an arena) and, where given, disk. `relieve(nbytes)` frees bytes under pressure and says how many. clock:
    counts the events by which `relieve` tells what was used least recently."""

    def __init__(self, arena: Arena, disk: DiskTier | None = None) -> None:
        self.arena = arena
        self.disk = disk
        self.relieve: Callable[[int], int] | None = None
        self.clock = count(1)

    @property
    def ledger(self) -> Ledger:
        """The ledger that arena runs and index bytes are charged to."""
        return self.arena.ledger

    def allocate(
        self,
        pieces: int,
        nbytes: int,
        category: str,
        reservation: Reservation | None = None,
        *,
        striped: bool = False,
    ) -> Run:
        """A run of `pieces` pieces of `nbytes` each, see `Arena.allocate`; under pressure others' idle segments move to
        disk first. Raises BudgetError, StorageError.
        """
        try:
            return self.arena.allocate(nbytes, category, reservation, pieces=pieces, striped=striped)
        except BudgetError:
            if self.relieve is None or self.relieve(self.arena.rounded(pieces * nbytes)) <= 0:
                raise
        return self.arena.allocate(nbytes, category, reservation, pieces=pieces, striped=striped)

    def charge(self, category: str, nbytes: int, reservation: Reservation | None = None) -> None:
        """Charge bytes that lie in no run; under pressure others' idle segments make room, as for a run. Raises
        BudgetError with nothing charged.
        """
        try:
            self.ledger.charge(category, nbytes, reservation)
        except BudgetError:
            if self.relieve is None or self.relieve(nbytes) <= 0:
                raise
            self.ledger.charge(category, nbytes, reservation)

    def reserve(self, owner: str, nbytes: int, limit: int | None = None) -> Reservation:
        """Promise bytes to an owner, with idle segments making room. limit: the owner's own bound. Raises BudgetError
        with the number that would fit.
        """
        self.make_room(nbytes)
        return self.ledger.reserve(owner, nbytes, limit)

    def make_room(self, nbytes: int) -> None:
        """Ask for idle segments to go until `nbytes` could be promised; does what it can."""
        available = self.ledger.available
        if available is not None and available < nbytes and self.relieve is not None:
            self.relieve(nbytes - available)

    def require_disk(self) -> DiskTier:
        """The disk tier. Raises StorageError where the cache has none."""
        if self.disk is None:
            raise StorageError("this cache has no disk tier: create it with disk=True or the folder it may use")
        return self.disk
