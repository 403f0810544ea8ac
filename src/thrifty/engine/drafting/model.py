"""A model that drafts for the engine's own: its runner, its caches and their bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.decoding.scores import Scores
from thrifty.decoding.services import DraftSequence, ModelFacts
from thrifty.decoding.step_costs import StepCosts
from thrifty.engine.model_info import model_info
from thrifty.engine.plan.native_runner import NativeRunner
from thrifty.engine.row_extra import RowExtra
from thrifty.engine.runner import CHUNK, Rows, Runner, chunk_end
from thrifty.errors import ThriftyError
from thrifty.models.adapters import Adapter
from thrifty.models.model import Model

TAIL = 2
"""The most tokens that a sequence is asked for at once behind what it holds: one that was drafted last and accepted,
and the one behind it."""


class EngineDraftModel:
    """A packed model behind a runner and a cache of its own.

    Its caches have a ledger of their own, without a bound: the engine's ledger holds what they may come to take, as
    "draft", from a request's admission on.
    """

    def __init__(
        self, model: Model, weights: int, runner: Runner, facts: ModelFacts, adapter: Adapter | None = None
    ) -> None:
        """weights: bytes of them in memory. nbytes: of weights and workspace, as they are before it runs. adapter: that
        all its rows take.
        """
        scratch = runner.adapter_scratch(adapter.rank) if adapter and isinstance(runner, NativeRunner) else 0
        self.nbytes = weights + runner.workspace + scratch
        self.costs = StepCosts()
        self._extra = None if adapter is None else RowExtra(adapter=adapter)
        self._runner = runner
        self._facts = facts
        self._sequences = 0
        self._hidden_size = model.config.hidden_size
        self._cache = Cache(model_info(model, CHUNK), prefix_tree=False)

    @property
    def facts(self) -> ModelFacts:
        """See DraftModel."""
        return self._facts

    @property
    def info(self) -> ModelInfo:
        """The model as cache policies are told of it."""
        return self._cache.model

    @property
    def held(self) -> int:
        """Bytes that its sequences hold now, rows of logits left out."""
        return self._cache.ledger.current

    def sequence_bytes(self, total: int, rows: int) -> int:
        """The most bytes of a sequence of `total` tokens that drafts `rows` at once: its cache, its rows of logits fp32
        and the distributions fp64 that the drafted tokens are drawn from.
        """
        tokens = min(total + rows, self._facts.context)
        distributions = (4 * TAIL + 8 * rows) * self._facts.vocabulary_size
        return self._cache.footprint((), tokens, tokens).peak_bytes + distributions

    def pass_bytes(self, policy: CachePolicy, prompt: int) -> int:
        """The most bytes of a pass by layers over `prompt` tokens under a policy: its cache, and its hidden state."""
        return self._cache.footprint((policy,), prompt, prompt).peak_bytes + 4 * prompt * self._hidden_size

    def open_pass(self, policy: CachePolicy) -> tuple[Runner, SequenceCache]:
        """What a pass by layers under a policy runs with. The caller frees the cache."""
        return self._runner, self._cache.create((policy,))

    def open(self) -> EngineDraftSequence:
        """See DraftModel."""
        sequence = EngineDraftSequence(self._cache.create(), self._runner, self._closed, self._extra)
        self._sequences += 1
        return sequence

    def run(self, rows: Sequence[tuple[DraftSequence, Sequence[int]]]) -> Scores:
        """See DraftModel."""
        with ExitStack() as undo:
            batch = []
            for sequence, tokens in rows:
                if not isinstance(sequence, EngineDraftSequence):
                    raise ThriftyError(f"{sequence!r} is no sequence of this model: open it here")
                undo.callback(sequence.forget)
                batch.append(sequence.rows(tokens))
            start = time.perf_counter()
            scores = self._runner.decode(batch)
            self.costs.note(sum(len(own.tokens) for own in batch), time.perf_counter() - start)
            undo.pop_all()
        for sequence, tokens in rows:
            if isinstance(sequence, EngineDraftSequence):
                sequence.drafted.extend(tokens)
        return scores

    def _closed(self) -> None:
        """A sequence ended: its rows of logits are given back."""
        self._sequences -= 1
        self._runner.keep_logits(TAIL * self._sequences)


class EngineDraftSequence:
    """One sequence of a drafting model. drafted: its tokens that are not committed, in order."""

    def __init__(
        self, cache: SequenceCache, runner: Runner, closed: Callable[[], None], extra: RowExtra | None = None
    ) -> None:
        """closed: told once, when it has freed what it held. extra: of all its rows."""
        self.drafted: list[int] = []
        self._cache = cache
        self._runner = runner
        self._on_close = closed
        self._extra = extra

    @property
    def length(self) -> int:
        """Committed tokens."""
        return self._cache.length

    def follow(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """See DraftSequence."""
        ahead, kept = tokens[self.length : -1], 0
        while kept < min(len(ahead), len(self.drafted)) and ahead[kept] == self.drafted[kept]:
            kept += 1
        if kept < len(self.drafted):
            self._cache.truncate(len(self.drafted) - kept)
        self.drafted = []
        if kept:
            self._cache.commit(kept)
        if len(tokens) - self.length > TAIL:
            self._prefill(tokens[: len(tokens) - 1])
        return tuple(tokens[self.length :])

    def catch_up(self, tokens: Sequence[int]) -> bool:
        """See DraftSequence."""
        if self.drafted or len(tokens) - 1 - self.length <= CHUNK:
            return True
        self._compute(tokens[: len(tokens) - 1])
        return False

    def rows(self, tokens: Sequence[int]) -> Rows:
        """These tokens as rows behind all that it holds, with room for them."""
        start = self.length + len(self.drafted)
        self._cache.reserve(len(self.drafted) + len(tokens))
        return Rows(self._cache, tokens, start, start + len(tokens), extra=self._extra)

    def forget(self) -> None:
        """Drop all uncommitted tokens, also those that a failed step left in some layers only."""
        self.drafted = []
        self._cache.discard()

    def close(self) -> None:
        """See DraftSequence."""
        if not self._cache.freed:
            self._cache.free()
            self._on_close()

    def _prefill(self, tokens: Sequence[int]) -> None:
        """Compute and commit what is missing of `tokens`, chunk by chunk."""
        while self.length < len(tokens):
            self._compute(tokens)

    def _compute(self, tokens: Sequence[int]) -> None:
        """Compute and commit the next chunk of `tokens`."""
        start = self.length
        stop = chunk_end(start, len(tokens), CHUNK)
        self._cache.reserve(stop - start)
        try:
            rows = Rows(self._cache, tokens[start:stop], start, len(tokens), extra=self._extra)
            self._runner.prefill(rows, last=False)
        except BaseException:
            self.forget()
            raise
        self._cache.commit(stop - start)
