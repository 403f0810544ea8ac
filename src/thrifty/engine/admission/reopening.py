"""Other caches for a sequence within the bytes that it was promised: of its programs' passes, then of its prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from thrifty.engine.admission.charges import Charges
from thrifty.engine.admission.prefix_keys import adapter_key, salt_key
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.prompt.program import Read
    from thrifty.engine.running import Running
    from thrifty.models.config.model_config import RopeConfig


class Reopening(Charges):
    """A base of `EngineMemory`."""

    _ropes_by_length: Sequence[RopeConfig]

    def open_pass(self, sequence: Running, policy: CachePolicy, tokens: Sequence[int]) -> SequenceCache:
        """The cache of a program's pass over these tokens, in place of what the sequence held: it begins with what the
        prefix tree has of them. Raises BudgetError; the sequence holds nothing then."""
        salt = salt_key(sequence, self._ropes_by_length, len(tokens))
        known = tokens if sequence.ticket.request.share_prefix else ()
        return self._reopen(sequence, (policy,), known, salt, self._sizes.hidden((policy,), len(tokens)), False)

    def open_read(self, sequence: Running, read: Read) -> SequenceCache:
        """The programs of a sequence are done: what they left of its prompt is its prompt, with a cache of its own.
        Raises BudgetError; the sequence holds nothing then."""
        assert sequence.reading is not None, "programs have looked at it"
        drafts, own = sequence.drafting.reading.drafts, sequence.ticket.policies[len(sequence.reading.policies) :]
        sequence.put_read(read)
        sequence.draft_bytes -= drafts
        self._give_drafts(drafts)
        policies = own if read.policy is None else (read.policy, *own)
        sequence.covered = min(sequence.total, sequence.prompt_length + PAGE) + sequence.drafted_rows
        shares = sequence.ticket.request.share_prefix
        known = read.tokens if shares else ()
        salt = salt_key(sequence, self._ropes_by_length)
        hidden = self._sizes.hidden(policies, len(read.tokens) + len(read.ahead))
        cache = self._reopen(sequence, policies, known, salt, hidden, shares)
        sequence.shared = cache.hit
        return cache

    def _reopen(
        self,
        sequence: Running,
        policies: Sequence[CachePolicy],
        tokens: Sequence[Hashable],
        salt: Hashable,
        hidden: int,
        publishes: bool,
    ) -> SequenceCache:
        """Another cache for a sequence, within the same promise. hidden: bytes of hidden state beside it."""
        held = sequence.cache
        assert held is not None
        self._drop_hidden(sequence)
        sequence.cache = None
        reservation = held.hand_over()
        assert reservation is not None, "a sequence was promised its bytes"
        with ExitStack() as undo:
            undo.callback(reservation.release)
            cache = self.cache.create(
                policies, tokens=tokens, adapter=adapter_key(sequence), salt=salt,
                reservation=reservation, publishes=publishes,
            )  # fmt: skip
            undo.callback(cache.free)
            self.ledger.charge("workspace", hidden, reservation)
            undo.pop_all()
        sequence.cache, sequence.hidden_bytes = cache, hidden
        return cache
