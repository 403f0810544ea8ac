"""What strategies keep from one answer to the next: counted, bounded, and given up where others need its memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from thrifty.cache.slots.tiers import Tiers
from thrifty.decoding.kept import Keeps, Kept
from thrifty.errors import BudgetError, RecipeError
from thrifty.storage.budget import format_size

KEPT = "drafts kept"
"""Ledger category of what is kept for drafting."""
KEPT_BYTES = 16 << 20
"""Of all that is kept, whoever asks for it: a request's own recipe may."""


class KeptShelf:
    """Holds one of each key and salt, those that were asked for last; `KEPT_BYTES` in all. What goes is closed, also
    where drafters still use it.
    """

    def __init__(self, tiers: Tiers) -> None:
        """tiers: whose ledger counts them. From now on they go when idle cache segments do not make enough room."""
        self._tiers = tiers
        self._held: OrderedDict[tuple[str, Hashable], Kept] = OrderedDict()
        self._relieve_others = tiers.relieve
        tiers.relieve = self._relieve

    @property
    def nbytes(self) -> int:
        """Of all that is kept."""
        return sum(kept.nbytes for kept in self._held.values())

    @staticmethod
    def check(keeps: Keeps | None) -> None:
        """Raise RecipeError for what is larger than the shelf."""
        if keeps is not None and keeps.nbytes > KEPT_BYTES:
            raise RecipeError(
                f"the strategy would keep {format_size(keeps.nbytes)} between answers, and an engine keeps at most "
                f"{format_size(KEPT_BYTES)}: use fewer nodes"
            )

    def find(self, salt: str, keeps: Keeps) -> Kept | None:
        """What is kept under a key for a salt, made where it is not there; None where memory has no room for it."""
        key = (salt, keeps.key)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        self._drop(self.nbytes + keeps.nbytes - KEPT_BYTES)
        try:
            self._tiers.make_room(keeps.nbytes)
            self._tiers.ledger.reserve(KEPT, keeps.nbytes).release()
            self._tiers.ledger.charge(KEPT, keeps.nbytes)
        except BudgetError:
            return None
        try:
            self._held[key] = keeps.make()
        except BaseException:
            self._tiers.ledger.credit(KEPT, keeps.nbytes)
            raise
        return self._held[key]

    def recount(self) -> None:
        """Set the ledger right after an error in the middle of things."""
        ledger = self._tiers.ledger
        ledger.credit(KEPT, ledger.bytes_of(KEPT) - self.nbytes)

    def close(self) -> None:
        """Give everything back."""
        self._drop(self.nbytes)

    def _relieve(self, nbytes: int) -> int:
        freed = 0 if self._relieve_others is None else self._relieve_others(nbytes)
        return freed + self._drop(nbytes - freed)

    def _drop(self, nbytes: int) -> int:
        """Close those that were asked for longest ago, until so many bytes are free. Returns how many were."""
        freed = 0
        while self._held and freed < nbytes:
            _, kept = self._held.popitem(last=False)
            held = kept.nbytes
            kept.close()
            self._tiers.ledger.credit(KEPT, held)
            freed += held
        return freed
