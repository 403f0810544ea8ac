"""What an engine charges to its ledger beside caches: rows of logits, drafting models, grammars, adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thrifty.engine.admission.request_bounds import RequestBounds
from thrifty.engine.drafting.models import DRAFT
from thrifty.errors import BudgetError, QueueFullError

if TYPE_CHECKING:
    from thrifty.cache.pool import Cache
    from thrifty.engine.runner import Runner
    from thrifty.engine.running import Running
    from thrifty.storage.ledger import Ledger

GRAMMARS = "grammars"
"""The ledger's name for what grammars take."""
ADAPTERS = "adapters"
"""Ledger category of the matrices of adapters, and of what a step takes for them."""


class Charges(RequestBounds):
    """The base of `EngineMemory` that counts what is no cache. ledger, cache: the engine's."""

    ledger: Ledger
    cache: Cache
    _runner: Runner
    _rows: int

    def hold_grammars(self, nbytes: int) -> None:
        """Account for what grammars take now: their vocabulary, and those that are compiled. Raises BudgetError where
        the budget has no room.
        """
        more = nbytes - self.ledger.bytes_of(GRAMMARS)
        if more <= 0:
            self.ledger.credit(GRAMMARS, -more)
            return
        reservation = self.cache.reserve(GRAMMARS, more)
        try:
            self.ledger.charge(GRAMMARS, more, reservation)
        finally:
            reservation.release()

    @contextmanager
    def rows_of_logits(self, most: int) -> Iterator[int]:
        """Hold rows of logits for one call of the runner: so many, or one where no more fit. Gives their number.

        Raises QueueFullError where others hold the memory of a single one.
        """
        count = most
        try:
            self._take_rows(count)
        except BudgetError:
            count = 1
            self._take_last_row()
        try:
            yield count
        finally:
            self._give_rows(count)

    def _take_last_row(self) -> None:
        try:
            self._take_rows(1)
        except BudgetError as error:
            raise QueueFullError(f"other requests hold the memory that this prompt needs: {error}") from error

    def hold_adapter(self, nbytes: int) -> None:
        """Charge an adapter, which is held beside the weights. Raises BudgetError with nothing changed."""
        self.cache.tiers.make_room(nbytes)
        self.ledger.charge(ADAPTERS, nbytes)
        self.adapters += nbytes

    def drop_adapter(self, nbytes: int) -> None:
        """Give an adapter's bytes back."""
        self.ledger.credit(ADAPTERS, nbytes)
        self.adapters -= nbytes

    @staticmethod
    def _note_bytes(sequence: Running) -> None:
        """What its cache held at most, for whoever asked."""
        if sequence.cache is not None and sequence.cache.reservation is not None:
            sequence.answer.usage.kv_bytes += sequence.cache.reservation.peak

    def _drop_hidden(self, sequence: Running) -> None:
        cache, hidden = sequence.cache, sequence.hidden_bytes
        assert cache is not None
        sequence.hidden_bytes = 0
        self.ledger.credit("workspace", hidden, cache.reservation)

    def _take_rows(self, count: int) -> None:
        """Charge logits for so many more sequences."""
        self.cache.tiers.make_room(count * self._row_bytes)
        self.ledger.charge("workspace", count * self._row_bytes)
        self._rows += count

    def _give_rows(self, count: int) -> None:
        if count:
            self._runner.keep_logits(self._rows - count)
            self.ledger.credit("workspace", count * self._row_bytes)
            self._rows -= count

    def _take_drafts(self, nbytes: int) -> None:
        """Charge what models that draft may come to hold."""
        if nbytes:
            self.cache.tiers.make_room(nbytes)
            self.ledger.charge(DRAFT, nbytes)

    def _give_drafts(self, nbytes: int) -> None:
        if nbytes:
            self.ledger.credit(DRAFT, nbytes)

    def _end_drafts(self, sequence: Running) -> None:
        nbytes, sequence.draft_bytes = sequence.draft_bytes, 0
        try:
            sequence.close_drafter()
        finally:
            self._give_drafts(nbytes)
