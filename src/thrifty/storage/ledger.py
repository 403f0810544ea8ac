"""The byte ledger: who holds how many bytes, what is promised, and the budget that bounds both."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Mapping

from thrifty.errors import BudgetError
from thrifty.storage.budget import format_size

TRANSIENT = frozenset({"workspace", "scratch"})


class Reservation:
    """Bytes promised to one owner, drawn down as the owner charges. `release` returns what is left.

    used, peak: bytes charged, now and at most. limit: a bound of the owner's own, never exceeded; None: none.
    """

    def __init__(self, ledger: Ledger, owner: str, nbytes: int, limit: int | None = None) -> None:
        self.owner = owner
        self.nbytes = nbytes
        self.limit = limit
        self.used = self.peak = 0
        self._ledger = ledger

    @property
    def outstanding(self) -> int:
        """Promised bytes that are not charged yet."""
        return max(0, self.nbytes - self.used)

    def resize(self, nbytes: int) -> None:
        """Change the promise. Raises BudgetError, with nothing changed, where more does not fit."""
        self._ledger._resize(self, nbytes)

    def suspend(self) -> None:
        """Let others have what is outstanding, until `resume`."""
        self._ledger._release(self)

    def resume(self) -> None:
        """Renew the promise. Raises BudgetError, with nothing changed, where what is outstanding does not fit now."""
        self._ledger._renew(self)

    def release(self) -> None:
        """End the promise; what was charged stays charged. A second call has no effect."""
        self._ledger._release(self)


class Ledger:
    """Bytes by category ("weights", "cache", "tree", "index", "scratch", "workspace", ...) under a budget.

    All methods may be called from any thread. `budget` None: no bound.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.current = 0
        self.peak = 0
        self._by_category: defaultdict[str, int] = defaultdict(int)
        self._peaks: defaultdict[str, int] = defaultdict(int)
        self._reservations: set[Reservation] = set()
        self._lock = threading.RLock()

    @property
    def steady(self) -> int:
        """Bytes held now without the transient categories (scratch of a layer, workspace)."""
        with self._lock:
            return self.current - sum(self._by_category[name] for name in TRANSIENT)

    @property
    def committed(self) -> int:
        """Bytes held now plus those promised and not yet taken."""
        with self._lock:
            return self.current + sum(reservation.outstanding for reservation in self._reservations)

    @property
    def available(self) -> int | None:
        """Bytes that a new reservation could have, None without a budget."""
        return None if self.budget is None else max(0, self.budget - self.committed)

    def bytes_of(self, category: str) -> int:
        """Bytes that a category holds now."""
        return self._by_category.get(category, 0)

    def categories(self) -> dict[str, dict[str, int]]:
        """For every category its current and peak bytes, JSON-ready."""
        with self._lock:
            return {
                name: {"current": self._by_category[name], "peak": self._peaks[name]}
                for name in sorted(self._by_category)
            }

    def charge(self, category: str, nbytes: int, reservation: Reservation | None = None) -> None:
        """Record bytes taken. Raises BudgetError, with nothing recorded, where budget or promises forbid."""
        with self._lock:
            promised = min(reservation.outstanding, nbytes) if reservation in self._reservations else 0
            if reservation is not None:
                _within(reservation, reservation.used + nbytes)
            self._check(nbytes - promised, f"{format_size(nbytes)} for {category}", nbytes)
            self.current += nbytes
            self._by_category[category] += nbytes
            self.peak = max(self.peak, self.current)
            self._peaks[category] = max(self._peaks[category], self._by_category[category])
            if reservation is not None:
                reservation.used += nbytes
                reservation.peak = max(reservation.peak, reservation.used)

    def credit(self, category: str, nbytes: int, reservation: Reservation | None = None) -> None:
        """Record bytes given back."""
        with self._lock:
            if nbytes > self._by_category[category]:
                held = self._by_category[category]
                raise BudgetError(f"the ledger holds {held} bytes of {category}; {nbytes} were given back")
            self.current -= nbytes
            self._by_category[category] -= nbytes
            if reservation is not None:
                reservation.used -= nbytes

    def recategorise(self, before: str, after: str, nbytes: int) -> None:
        """Move bytes between categories (a page that the tree adopts)."""
        with self._lock:
            self.credit(before, nbytes)
            self.current += nbytes
            self._by_category[after] += nbytes
            self._peaks[after] = max(self._peaks[after], self._by_category[after])

    def reserve(self, owner: str, nbytes: int, limit: int | None = None) -> Reservation:
        """Promise bytes to an owner (admission by peak). limit: a bound of its own on what it may charge.

        Raises BudgetError with the number that would fit.
        """
        with self._lock:
            reservation = Reservation(self, owner, nbytes, limit)
            _within(reservation, nbytes)
            self._check(nbytes, f"{owner}: a peak of {format_size(nbytes)}", nbytes)
            self._reservations.add(reservation)
            return reservation

    def restate(
        self, held: Mapping[str, int], used: Mapping[Reservation, int], promised: Collection[Reservation]
    ) -> None:
        """Set the books right: what these categories hold, and what these owners have charged. Promises end, but those
        of `promised`: what an owner charged may outlive it, in the hands of others.

        For a count from the bottom after an error in the middle of things; no budget is checked.
        """
        with self._lock:
            for category, nbytes in held.items():
                self.current += nbytes - self._by_category[category]
                self._by_category[category] = nbytes
                self._peaks[category] = max(self._peaks[category], nbytes)
            self.peak = max(self.peak, self.current)
            for reservation, nbytes in used.items():
                reservation.used = nbytes
                reservation.peak = max(reservation.peak, nbytes)
            self._reservations.intersection_update(promised)

    def reset_peak(self) -> None:
        """Start new peaks from what is held now."""
        with self._lock:
            self.peak = self.current
            for name, held in self._by_category.items():
                self._peaks[name] = held

    def _resize(self, reservation: Reservation, nbytes: int) -> None:
        with self._lock:
            _within(reservation, nbytes)
            more = max(0, nbytes - reservation.used) - reservation.outstanding
            if reservation in self._reservations and more > 0:
                self._check(more, f"{reservation.owner}: {format_size(more)} more", more)
            reservation.nbytes = nbytes

    def _renew(self, reservation: Reservation) -> None:
        with self._lock:
            if reservation not in self._reservations:
                more = reservation.outstanding
                self._check(more, f"{reservation.owner}: {format_size(more)}", more)
                self._reservations.add(reservation)

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            self._reservations.discard(reservation)

    def _check(self, unpromised: int, what: str, wanted: int) -> None:
        if self.budget is None or unpromised <= 0 or self.committed + unpromised <= self.budget:
            return
        need = self.committed + unpromised
        raise BudgetError(
            f"{what} does not fit: the budget is {format_size(self.budget)} ({self.budget} bytes), "
            f"{format_size(self.current)} are held and {format_size(self.committed - self.current)} promised, "
            f"so at most {format_size(wanted - (need - self.budget)) if wanted > need - self.budget else '0 bytes'}"
            f" would fit; a budget of {need} bytes ({format_size(need)}) would hold it"
        )


def _within(reservation: Reservation, nbytes: int) -> None:
    """Raise BudgetError where the owner would exceed its own bound."""
    if reservation.limit is not None and nbytes > reservation.limit:
        raise BudgetError(
            f"{reservation.owner}: {nbytes} bytes ({format_size(nbytes)}) exceed its own bound of {reservation.limit} "
            f"({format_size(reservation.limit)}); give it a bound of {nbytes} bytes or more"
        )
