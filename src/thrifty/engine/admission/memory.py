"""The engine's memory: one budget for weights, workspace and caches, and who holds what."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from thrifty.cache.pool import Cache
from thrifty.engine.admission.charges import GRAMMARS
from thrifty.engine.admission.owed import missing, taken_over
from thrifty.engine.admission.prefix_keys import adapter_key, plain_salt_key, salt_key
from thrifty.engine.admission.reopening import Reopening
from thrifty.engine.admission.request_sizes import RequestSizes
from thrifty.engine.drafting.models import DRAFT, DraftModels, LoadDraft, load_draft
from thrifty.engine.drafting.shelf import KeptShelf
from thrifty.engine.model_info import model_info
from thrifty.engine.plan.native_runner import NativeRunner
from thrifty.engine.runner import Runner
from thrifty.engine.running import Running, State
from thrifty.engine.sessions.sessions import Sessions
from thrifty.formats.kv import PAGE
from thrifty.models.rope import depends_on_length
from thrifty.storage.budget import parse_size
from thrifty.storage.ledger import Ledger, Reservation

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.models.model import Model

SESSION_BYTES = 1_000_000_000
"""What sessions may hold, in memory and on disk, unless an engine is told otherwise."""


class EngineMemory(Reopening):
    """Charges weights and workspace, opens and frees the caches of sequences. ledger: bytes by category."""

    def __init__(
        self,
        model: Model,
        runner: Runner,
        memory: int | str | None,
        *,
        chunk: int,
        disk: str | os.PathLike[str] | None = None,
        prefix_tree: bool = True,
        conversation_disk: int | None = None,
        session_bytes: int = SESSION_BYTES,
        beside: int | None = None,
        batch: int = 32,
        load_draft: LoadDraft = load_draft,
    ) -> None:
        """chunk: the most rows that a prefill appends at once. disk, conversation_disk, session_bytes, batch,
        load_draft: see Engine. beside: bytes of the process beside the ledger, where it is bounded as a whole. Raises
        BudgetError where weights and workspace alone exceed the budget.
        """
        self.ledger = Ledger(None if memory is None else parse_size(memory))
        self._runner = runner
        self._ropes_by_length = [rope for rope in model.config.ropes if depends_on_length(rope)]
        self._rows, self._closed = 0, False
        weights = model.nbytes - (model.read_from_file if isinstance(runner, NativeRunner) else 0)
        self.cache = Cache(
            model_info(model, chunk),
            ledger=self.ledger,
            disk=disk or True,
            prefix_tree=prefix_tree,
            conversation_disk=conversation_disk,
            outside=weights + runner.workspace,
        )
        self.sessions = Sessions(self.cache, session_bytes)
        native = None if isinstance(runner, NativeRunner) else False
        self.drafts = DraftModels(model, self.cache.tiers, load_draft, native=native, batch=batch)
        self.kept = KeptShelf(self.cache.tiers)
        super().__init__(
            RequestSizes(self.cache, model.config.hidden_size, chunk),
            budget=self.ledger.budget,
            weights=weights,
            workspace=runner.workspace,
            row_bytes=4 * model.config.vocabulary_size
            + (runner.sequence_bytes if isinstance(runner, NativeRunner) else 0),
            beside=beside,
        )
        self.check((), 1, 2, what="one token")
        self.ledger.charge("weights", weights)
        self.ledger.charge("workspace", self.workspace)

    @property
    def drafts_bytes(self) -> int:
        """See RequestBounds."""
        return self.drafts.nbytes

    # --- what the scheduler asks ---------------------------------------------------------------------

    def admit(self, sequence: Running) -> None:
        """Reserve the prefill's peak and open the cache, on a shared prefix where the tree has one.

        Raises BudgetError with nothing changed.
        """
        ticket, prompt = sequence.ticket, sequence.prompt_length
        samples, drafted = ticket.request.samples, sequence.drafted_rows
        reading = sequence.drafting.reading
        rows, drafts = samples * ticket.drafting.rows, samples * ticket.drafting.nbytes(sequence.total) + reading.drafts
        covered = min(sequence.total, prompt + PAGE) + drafted
        need = max(reading.cache, self._sizes.held(ticket.policies, prompt, covered, samples).peak_bytes)
        hidden = 0 if sequence.reading is not None else self._sizes.hidden(ticket.policies, prompt)
        owner = f"request {ticket.request.identity}"
        with ExitStack() as undo:
            self._take_rows(rows)
            undo.callback(self._give_rows, rows)
            self._take_drafts(drafts)
            undo.callback(self._give_drafts, drafts)
            reservation = self._promise(sequence, owner, need)
            undo.callback(reservation.release)
            cache = self._open(sequence, reservation)
            undo.callback(cache.free)
            self.ledger.charge("workspace", hidden, reservation)
            undo.pop_all()
        sequence.cache, sequence.rows, sequence.covered, sequence.hidden_bytes = cache, rows, covered, hidden
        sequence.shared, sequence.draft_bytes = cache.hit, drafts

    def cover(self, sequence: Running) -> None:
        """Make sure that the next rows of a decoding sequence have room. Raises BudgetError with nothing
        changed.
        """
        if sequence.state is State.DECODING and len(sequence.tokens) + sequence.drafted_rows > sequence.covered:
            self._resize(sequence, min(sequence.total, len(sequence.tokens) + PAGE) + sequence.drafted_rows)

    def publish(self, sequence: Running) -> None:
        """Offer the pages of a prompt that are computed so far to the prefix tree."""
        self._publish(sequence, sequence.tokens[: sequence.prompt_length])

    def publish_text(self, cache: SequenceCache, tokens: Sequence[int], salt: str) -> None:
        """Offer the pages of a text that no request reads to prompts under a salt that begin alike."""
        self.cache.publish(cache, tokens, salt=plain_salt_key(salt, len(tokens), self._ropes_by_length))

    def publish_answer(self, sequence: Running) -> None:
        """Offer the pages of a prompt and its answer, for a prompt that goes on from them: the next turn of a chat.

        Only where a decoded row has the bits of a prefilled one: native code computed it, and nothing compressed it.
        """
        cache = sequence.cache
        if cache is None or sequence.state is not State.DECODING or sequence.parked:
            return
        if (cache.marks or not cache.policies) and cache.native_view.view is not None:
            self._publish(sequence, sequence.tokens)

    def settle(self, sequence: Running) -> None:
        """After its prefill: give back the hidden state and the promised peak. Where rows of the answer select what
        they read, they are not those of a prompt: nothing behind the prompt is kept for others.
        """
        assert sequence.cache is not None
        request = sequence.ticket.request
        if sequence.cache.selection is not None:
            sequence.cache.marks = False
        if sequence.cache.pages is not None:
            self.publish(sequence)
        sequence.cache.drop_stored()
        bounded = request.samples > 1 and request.cache_bytes is not None  # together: none knows what the others hold
        if bounded or not isinstance(self._runner, NativeRunner):  # `publish_answer` asks for native rows
            sequence.cache.stop_snapshots()
        self._drop_hidden(sequence)
        self._resize(sequence, sequence.covered)

    def fork(self, parent: Running, child: Running) -> None:
        """Give `child` a cache that shares the parent's; where the parent holds rows of logits (and what models that
        draft hold) for its samples, those of one too. Raises BudgetError with nothing changed.
        """
        assert parent.cache is not None
        policies, prompt, length = parent.ticket.policies, parent.prompt_length, len(parent.tokens)
        covered, held = min(child.total, length + PAGE) + child.drafted_rows, parent.cache.length
        shared = self._sizes.shared(policies, prompt, held, held)
        need = self._sizes.decoding(policies, prompt, covered, shared)
        owner, own_rows = f"request {child.answer.identity}", child.drafted_rows + 1
        inherits = parent.rows > own_rows
        rows, drafts = (0 if inherits else own_rows), child.ticket.drafting.nbytes(child.total)
        with ExitStack() as undo:
            self._take_rows(rows)
            undo.callback(self._give_rows, rows)
            self._take_drafts(0 if inherits else drafts)
            undo.callback(self._give_drafts, 0 if inherits else drafts)
            reservation = self.cache.reserve(owner, need, child.ticket.request.cache_bytes)
            undo.callback(reservation.release)
            cache = parent.cache.fork(reservation)
            undo.pop_all()
        parent.rows -= own_rows - rows
        parent.draft_bytes -= drafts if inherits else 0
        child.cache, child.rows, child.covered, child.shared = cache, own_rows, covered, held
        child.draft_bytes = drafts

    def park(self, sequence: Running) -> None:
        """Let the sequence's segments move to the disk tier; its promise ends, and so do its drafter and its programs,
        which begin anew."""
        assert sequence.cache is not None
        if sequence.reading is not None:
            sequence.stop_prefill()
        self._end_drafts(sequence)
        sequence.cache.park()

    def restore(self, sequence: Running, beside: int) -> None:
        """Bring a parked sequence back, with room for its next page and one of each of the `beside` active ones: so
        that it does not have to leave again at once. Raises BudgetError with nothing changed.
        """
        cache = sequence.cache
        assert cache is not None and cache.reservation is not None
        tokens, drafted = sequence.covered, sequence.drafted_rows
        if len(sequence.tokens) + drafted >= tokens:
            tokens = min(sequence.total, len(sequence.tokens) + PAGE) + drafted
        decoding = sequence.state is State.DECODING
        growth = max(0, self._need_of(sequence, tokens) - cache.reservation.nbytes) if decoding else 0
        drafts = sequence.samples * sequence.ticket.drafting.nbytes(sequence.total) + sequence.drafting.reading.drafts
        extra = growth + drafts + beside * self._sizes.page_bytes
        self.cache.tiers.make_room(missing(sequence) + extra)
        self.ledger.reserve(f"request {sequence.answer.identity}", missing(sequence) + extra).release()
        cache.resume()
        try:
            if decoding:
                self._resize(sequence, tokens)
            self._take_drafts(drafts)
            sequence.draft_bytes = drafts
        except BaseException:
            cache.park()
            raise

    def keep_session(self, sequence: Running) -> None:
        """The answer ended well: its session goes on from here. Without effect on one that has no session."""
        session, cache = sequence.session, sequence.cache
        if session is not None and cache is not None and sequence.state is State.DECODING and not sequence.parked:
            self._drop_hidden(sequence)
            self.sessions.keep(session, cache, sequence.told_tokens, sequence.prompt_length)
            self._note_bytes(sequence)
            sequence.cache = None

    def release(self, sequence: Running) -> None:
        """Free what the sequence holds; without effect on one that holds nothing.

        Where it is left by an error: `recount`, then once more.
        """
        self._give_rows(sequence.rows)
        sequence.rows = 0
        sequence.stop_prefill()
        self._end_drafts(sequence)
        if sequence.cache is not None:
            self._drop_hidden(sequence)
            self.cache.release(sequence.cache)
            self._note_bytes(sequence)
            sequence.cache = None
        session, sequence.session = sequence.session, None
        if session is not None:
            self.sessions.end(session)

    def recount(self, sequences: Sequence[Running]) -> None:
        """Set the books right after an error that left a call in the middle. sequences: all that are not finished."""
        self._rows = sum(sequence.rows for sequence in sequences)
        hidden = {
            sequence.cache.reservation: sequence.hidden_bytes
            for sequence in sequences
            if sequence.cache is not None and sequence.cache.reservation is not None and not sequence.cache.freed
        }
        fixed = 0 if self._closed else self.workspace + self._rows * self._row_bytes
        self.cache.recount("workspace", fixed, hidden)
        drafts = self.drafts.nbytes + sum(sequence.draft_bytes for sequence in sequences)
        self._give_drafts(self.ledger.bytes_of(DRAFT) - drafts)
        self.kept.recount()

    def close(self) -> None:
        """Forget the prefix tree and give back everything but the weights."""
        self._closed = True
        self.drafts.close()
        self.kept.close()
        self.sessions.close()
        if self.cache.checkpoints is not None:
            self.cache.checkpoints.shrink(-1)
        for tree in (self.cache.tree, self.cache.conversations):
            if tree is not None:
                tree.clear()
        if self.cache.tiers.disk is not None:
            self.cache.tiers.disk.close()
        for category in ("workspace", GRAMMARS):
            self.ledger.credit(category, self.ledger.bytes_of(category))

    def describe(self) -> dict[str, Any]:
        """JSON-ready: the budget, and bytes by category, now and at the peak."""
        return self.cache.describe()

    # --- inside --------------------------------------------------------------------------------------

    def _publish(self, sequence: Running, tokens: Sequence[int]) -> None:
        cache, request = sequence.cache, sequence.ticket.request
        if cache is not None and request.share_prefix:
            keys = tokens if sequence.media is None else sequence.media.keys(tokens)
            salt = salt_key(sequence, self._ropes_by_length)
            self.cache.publish(cache, keys, adapter=adapter_key(sequence), salt=salt)

    def _need_of(self, sequence: Running, tokens: int) -> int:
        """What a sequence needs of its own until it has `tokens` tokens."""
        assert sequence.cache is not None
        policies, prompt = sequence.ticket.policies, sequence.prompt_length
        shared = self._sizes.shared(policies, prompt, sequence.shared, sequence.cache.length)
        need = self._sizes.decoding(policies, prompt, tokens, shared)
        lent = sequence.session is not None and sequence.session.lent
        return max(0, need - taken_over(sequence.cache)) if lent else need

    def _resize(self, sequence: Running, tokens: int) -> None:
        cache = sequence.cache
        assert cache is not None and cache.reservation is not None
        need = self._need_of(sequence, tokens)
        self.cache.tiers.make_room(need - cache.reservation.nbytes)
        cache.reservation.resize(need)
        sequence.covered = tokens

    def session_kind(self, sequence: Running) -> Hashable:
        """What the rows of a session depend on beside its tokens and its recipe."""
        _, classes, steering, *_ = salt_key(sequence, self._ropes_by_length)
        return adapter_key(sequence), classes, steering

    def _promise(self, sequence: Running, owner: str, need: int) -> Reservation:
        """Room for a sequence, and for the session that it goes on from."""
        session, bound = sequence.session, sequence.ticket.request.cache_bytes
        if session is not None:
            self.sessions.check_held(session)
        if session is None or session.source.cache is None:
            return self.cache.reserve(owner, need, bound)
        return self.sessions.promise(session, owner, need, bound)

    def _open(self, sequence: Running, reservation: Reservation) -> SequenceCache:
        session = sequence.session
        if session is not None and session.source.cache is not None:
            return self.sessions.resume(session, reservation)
        keys: Sequence[Hashable] = sequence.tokens if sequence.ticket.request.share_prefix else ()
        if sequence.reading is not None:
            keys = ()  # its programs say what it begins with
        elif sequence.media is not None and keys:
            keys = sequence.media.keys(sequence.tokens)
        return self.cache.create(
            sequence.ticket.policies,
            tokens=keys,
            adapter=adapter_key(sequence),
            salt=salt_key(sequence, self._ropes_by_length),
            reservation=reservation,
            publishes=sequence.ticket.request.share_prefix,
        )
