"""The cache of one sequence: its slots, the policies that act on them, and the phases that it goes through.

The calls, as the engine makes them:

    plain prefill or decode step           compressing prefill (`sequence.layer_major` is True)
    ------------------------------         ------------------------------------------------------
    sequence.reserve(n)                    for layer in range(layers):
    for every layer:                           sequence.begin_layer(layer, n)
        sequence.append(layer, k, v)           for chunk in chunks:      # of the layer's hidden states
        sequence.attend(layer, q, ...)             sequence.append(layer, k, v); sequence.attend(layer, q, ...)
    sequence.truncate(rejected)                sequence.seal_layer(layer)
    sequence.commit(accepted)              sequence.commit(n)

Where a policy rehearses (`sequence.rehearses`), a plain prefill is followed by the calls of `Rehearsals`.

Natively `sequence.native` stands for append and attend: the plan writes rows into the same open pages.

Rows come in at `open_rows`, are attended to by `attending` or through `native_view`, become spans in
`sealing`, and leave by the edits (`editing.apply`) of policies that `schedule` calls, or by `rollback`.

Order rule: a row attends to its layer's spans in list order, each in blocks of 64 slots from its own start. Pages
begin at the same tokens whatever the chunking, batch or prefix hit, so results do not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.cache.composition import rehearsing
from thrifty.cache.editing.apply import apply_edits
from thrifty.cache.editing.rollback import check, roll_back
from thrifty.cache.marks import set_mark
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import BLOCK, CachePolicy
from thrifty.cache.rehearsals import Rehearsals
from thrifty.cache.sequence_prompt import SequencePrompt
from thrifty.cache.slots.sealing import roll
from thrifty.cache.slots.sequence_slots import SequenceSlots
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.watching import attending
from thrifty.cache.watching.sums import Accumulator
from thrifty.errors import PromptError
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.slots.segment import Segment
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation


class SequenceCache(SequencePrompt):
    """The cache of one sequence. Made by `Cache.create` or `fork`; belongs to one thread at a time.

    hit: tokens that came from the prefix tree (they count in `length`).
    marks: whether a copy of what it holds is kept at every multiple of 128 tokens. mark: the newest one, parked.
    rehearses: the policy that wants to see the prompt again, None where none does.
    """

    def __init__(
        self,
        tiers: Tiers,
        model: ModelInfo,
        policies: Sequence[CachePolicy] = (),
        *,
        reservation: Reservation | None = None,
        collect: Statistics | None = None,
        siblings: WeakSet[SequenceSlots] | None = None,
    ) -> None:
        """Made by `Cache.create`, which knows the prefix tree. See `SequencePrompt`."""
        self.rehearses = rehearsing(policies)
        self.rehearsals: Rehearsals | None = None
        self.marks = False
        self.mark: SequenceCache | None = None
        super().__init__(tiers, model, policies, reservation=reservation, collect=collect, siblings=siblings)
        self._schedule_plain()

    def stats(self, layer: int) -> Stats:
        """What was collected for a layer, aligned with its committed slots (the notes are the first policy's)."""
        return self.collector.stats(layer, self.counts(layer), places=self.places(layer))

    # --- rows ----------------------------------------------------------------------------------------

    def remember(self, tokens: Sequence[int], start: int = 0) -> None:
        """The ids of the tokens at `start` and beyond, for policies that ask which token a slot holds: of a prompt
        before its rows come (those of a prefix hit too), of decoded rows before they are committed. No effect where
        nobody asks. Raises BudgetError.
        """
        self.collector.remember(tokens, start)

    def attend(
        self,
        layer: int,
        query: Floats,
        positions: Integers | None = None,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        window: int | None = None,
        ahead: Array | None = None,
        path: Sequence[int] | None = None,
        decodes: bool = False,
    ) -> Floats:
        """Attention of query [n, heads, head_dim] over the layer's slots → [n, heads, head_dim] fp32.

        The rows are the newest n that were appended: row i sees every slot but the last n-1-i, and in a windowed layer
        only the last `window` of them. scale, softcap, window default to the model's. positions are the rows' logical
        positions (only their number is checked: keys are stored rotated). ahead: integers [n], how many of the rows
        behind it a row sees as well. Collects the statistics that policies want.

        path: of one row that continues a tree: the uncommitted rows that it sees, itself included, counted from the
        first of them; it sees every committed slot, in a windowed layer as if the path were a line. decodes: they are
        rows of an answer, which select pages where a policy says so.
        """
        if positions is not None and len(positions) != len(query):
            raise PromptError(f"{len(positions)} positions for {len(query)} query rows: give one a row")
        return attending.attend(
            self,
            self.collector,
            layer,
            np.asarray(query, np.float32),
            scale=self.model.scale if scale is None else scale,
            softcap=(self.model.softcap if softcap is None else softcap) or 0.0,
            window=self.model.windows[layer] if window is None else window,
            ahead=ahead,
            path=path,
            selection=self.selection if decodes else None,
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Of the uncommitted rows these stay, in this order; the others are dropped. rows: rising, counted from the
        first uncommitted one. What was collected of a row stays with it, without the slots of dropped rows.

        Raises PromptError, with nothing changed, for rows that are not there.
        """
        held = self._uncommitted()
        if list(rows) != sorted(set(rows)) or (rows and not 0 <= rows[0] <= rows[-1] < held):
            raise PromptError(f"keep({list(rows)}): use rising numbers of the {held} uncommitted rows")
        if self.states is not None and len(rows) < held:
            self.states.check_drop(held - len(rows), held)
        if list(rows) != list(range(len(rows))):
            committed = {layer: self._committed_places(layer) for layer in self.policy_layers}
            self.open_rows.keep(rows)
            self.collector.keep_rows(rows, committed)
        self.truncate(held - len(rows))

    def _uncommitted(self) -> int:
        """Rows of every layer that are not committed."""
        if self.native_view.view is not None:
            return self.native_view.uncommitted(self.model.attention_layers[0])
        return max(self.open_rows.pending.values(), default=0)

    def _committed_places(self, layer: int) -> list[int]:
        """Places of each KV head of a layer, uncommitted rows left out."""
        pending = self.open_rows.pending.get(layer, 0)
        return [count - pending for count in self.place_counts(layer)]

    def commit(self, n: int) -> None:
        """Accept the n rows appended since the last commit. Drops window pages, calls policies that are due.

        O(1) but at events (page boundary, a policy's period). Rejected rows must have been truncated before.
        """
        if self._sealed:
            self._commit_prompt(n)
            return
        if self.open_rows.pending:
            self.open_rows.check(n)
        if self.states is not None:
            self.states.commit(n, self.native_view.view)
        if self.collector.pending():
            self.collector.commit({layer: self.place_counts(layer) for layer in self.policy_layers})
            self.collector.settle()
        self.collector.commit_native()
        self.open_rows.pending = {}
        self.tail.rows += n
        self.length += n
        if self.tail.rows >= PAGE:
            roll(self.tail, self.spans, self.native_view, self.length)
            if self.states is not None and self.states.snapshots and not self.tail.rows:
                self.states.take_snapshot(self.length)
        if self.length >= self.schedule.next:
            self.schedule.after_decode(self, self.collector)
            if self.marks and self.length % BLOCK == 0:
                set_mark(self)

    def truncate(self, n: int) -> None:
        """Drop the newest n rows: uncommitted ones first, then committed ones.

        Raises PromptError, with nothing changed, where a windowed layer has already let go of what the shorter sequence
        would need, or a recurrent layer would have to go back to other rows than the last commit's. What a policy
        evicted stays evicted.
        """
        if self._between_layers:
            raise PromptError("a prompt that is being prefilled layer by layer cannot be truncated; free the sequence")
        open_rows = self._uncommitted()
        rejected = min(n, open_rows)
        if self.states is not None and n:
            self.states.check_drop(n, open_rows)
            self.states.discard()
        if n > rejected:
            check(self, self.length - (n - rejected))
        if rejected:
            self.collector.truncate(rejected)
            self.native_view.truncate(rejected)
            self.open_rows.reject(rejected)
        if n > rejected:
            self.native_view.drop()
            before = {layer: self.places(layer) for layer in self.policy_layers}
            roll_back(self, self.length - (n - rejected))
            self.schedule.shorten(self.length)
            self.collector.shorten(self.length)
            for layer, places in before.items():
                self.collector.fit(layer, self.counts(layer), self.length, places, self.places(layer))

    def end_lookahead(self, n: int) -> None:
        """The newest n rows of a prompt that was filled layer by layer were there to be observed: they go, and the
        prompt's last token comes once more. Raises PromptError as `truncate`."""
        self.truncate(n)
        self.prompt = self.length + 1

    def discard(self) -> None:
        """Drop all uncommitted rows, also those that a failed step left in some layers only."""
        self.open_rows.pending = {}
        self.native_view.drop()
        if self.states is not None:
            self.states.discard()
        self.collector.discard()

    def start_at(self, length: int) -> None:
        """Called by `Cache.create`: the spans of a prefix of `length` tokens were put in."""
        self.length = self.hit = length
        self._schedule_plain()

    # --- rehearsals ----------------------------------------------------------------------------------

    def begin_rehearsals(self, prompt: Sequence[int]) -> Rehearsals:
        """The prompt (token ids, all that the sequence holds) is committed: what its policy wants to see now.

        Raises BudgetError where scoring does not fit.
        """
        if self.rehearses is None:
            raise PromptError("no cache technique of this sequence rehearses its prompt")
        self.rehearsals = Rehearsals(self, self.rehearses, prompt, self.truncate)
        return self.rehearsals

    def complete_prompt(self) -> None:
        """The rehearsals are over: all policies act on the prompt, the one that rehearsed first, on all layers."""
        if self.rehearses is None or self.rehearsals is None or self.rehearsals.open:
            raise PromptError("the prompt was not rehearsed to its end: call begin_rehearsals, and end each of them")
        self.seal_tail()
        self.tail.close()
        self.native_view.drop()
        self.collector.prefilling = True
        earlier, self.prompt = self.prompt, self.length
        views = [self.view(layer) for layer in self.policy_layers]
        edits = self.rehearses.after_prompt(views, self.rehearsals.scores())
        self._end_rehearsals()
        apply_edits(self, self.collector, edits, self.policy_layers)
        for layer in self.policy_layers:
            self.schedule.after_prefill(self, self.collector, layer, 0, earlier)
        self.collector.prefilling = False
        self.schedule.begin(self.length)

    def _end_rehearsals(self) -> None:
        if self.rehearsals is not None:
            self.rehearsals.close()
            self.rehearsals = None

    # --- sharing, ending -----------------------------------------------------------------------------

    def fork(self, reservation: Reservation | None = None) -> SequenceCache:
        """A second sequence with the same committed content: sealed segments are shared, the open page is copied.

        reservation: what the fork draws from. Raises BudgetError with nothing changed.
        """
        if self._between_layers:
            raise PromptError("a prompt that is being prefilled layer by layer cannot be forked yet")
        if self.rehearsals is not None:
            raise PromptError("a prompt that is being rehearsed cannot be forked yet")
        other = SequenceCache(self.tiers, self.model, self.policies, reservation=reservation, siblings=self.siblings)
        other.statistics, other.layer_major = self.statistics, self.layer_major
        other.length, other.hit, other.prompt = self.length, self.hit, self.prompt
        other.schedule = self.schedule.copy()
        try:
            other.tail.copy_from(self.tail, self.length)
            other.collector = self.collector.copy(reservation)
            if self.states is not None and other.states is not None:
                other.states.copy_from(self.states)
            other.spans.share_from(self.spans)
        except BaseException:
            other.free()
            raise
        return other

    @property
    def index_bytes(self) -> int:
        """See `SequenceSlots`: those of statistics and rehearsals."""
        rehearsals = 0 if self.rehearsals is None else self.rehearsals.charged
        return super().index_bytes + self.collector.charged + rehearsals

    def references(self) -> Iterator[Segment]:
        """See `SequenceSlots`: with what lies on disk of its prompt."""
        yield from super().references()
        for held in (self.stored, self.pages):
            if held is not None:
                yield from held.segments()

    def _release_all(self) -> None:
        self._end_rehearsals()
        self.drop_stored()
        kept, self.mark = self.mark, None
        if kept is not None:
            kept.free()
        super()._release_all()
        self.collector.free()

    # --- the native step -----------------------------------------------------------------------------

    @property
    def native(self) -> Any:
        """The native View kept in step with the spans; None where there is no native module. Ask for it anew at every
        step. Raises BudgetError or StorageError where segments on disk do not fit into memory beside it, KernelError
        for a head dimension that native code does not take."""
        if self.parked:
            raise RuntimeError("a parked sequence was asked for its native view: resume it first")
        return self.native_view.follow(sums=self.collector.sums_now)

    def accumulate_rows(self, rows: int) -> Accumulator | None:
        """Where the native step of the next `rows` rows, which may be rejected, leaves their attention probabilities:
        None where no column sums are collected. Raises BudgetError.
        """
        if not self.collector.sums_now:
            return None
        return self.collector.native_rows(rows, self.native_view.widest(self.policy_layers) + rows)

    def _schedule_plain(self) -> None:
        """What is not compressed when its prompt ends counts its policies' periods from the beginning."""
        if not self.layer_major and self.rehearses is None:
            self.schedule.begin(self.length)
