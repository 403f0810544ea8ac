"""The native runner: steps as replays of a compiled plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty import extras
from thrifty.arrays import Floats
from thrifty.decoding.scores import Scores
from thrifty.engine.model_info import check_cacheable
from thrifty.engine.plan.options import StepOptions
from thrifty.engine.plan.plan import NativePlan, Whole, compile_plan
from thrifty.engine.plan.row_options import positions, row_options
from thrifty.engine.row_extra import RowExtra, embedded
from thrifty.engine.runner import Rows, Runner
from thrifty.errors import KernelError
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.watching.sums import Accumulator
    from thrifty.models.model import Model

_NO_ROWS: Whole = np.empty(0, np.int32)
INSTEAD = "native=False (--reference) runs the slow torch reference instead"
ADAPTED_TOGETHER = 3
"""Linears that one native operation computes from the same rows, as `Adapters::kTogether` says."""


def choose_runner(model: Model, *, native: bool | None, rows: int) -> Runner:
    """The native runner, or with native=False the torch reference. rows: the most of a step.

    Raises KernelError where there is no native module, or where it does not do what the model needs, with the remedy
    where the reference does; ConfigError for a layer that the cache does not hold, whoever runs it; MissingExtra where
    the reference is asked for without torch.
    """
    check_cacheable(model.config)
    if native is False:
        extras.require_torch("--reference (native=False)")
        from thrifty.reference.runner import ReferenceRunner

        return ReferenceRunner(model, "native code was turned off")
    try:
        module = dispatch.require()
        plan = compile_plan(model, rows)
    except KernelError as error:
        raise KernelError(f"{str(error).rstrip('.')}; {INSTEAD}") from error
    reason = f"native plan of {len(model.config.layers)} layers, {module.isa()}, {module.threads()} threads"
    return NativeRunner(plan, reason)


class NativeRunner:
    """Runs sequences through the plan. A row has the same bits in any batch, whoever else runs."""

    name = "native"

    def __init__(self, plan: NativePlan, reason: str) -> None:
        self.plan = plan
        self.reason = reason
        self.layers = len(plan.config.layers)

    @property
    def most_rows(self) -> int:
        """See Runner."""
        return self.plan.max_rows

    @property
    def workspace(self) -> int:
        """See Runner."""
        return self.plan.nbytes

    @property
    def sequence_bytes(self) -> int:
        """Bytes that it keeps for each sequence beside its row of logits: how its present positions are turned."""
        return self.plan.rotary.block_bytes

    def adapter_scratch(self, rank: int) -> int:
        """Bytes that a step of the most rows takes where an adapter has `rank`: what it makes of each row for the
        linears of one operation, fp32.
        """
        return 4 * ADAPTED_TOGETHER * rank * self.most_rows

    def keep_logits(self, rows: int) -> None:
        """See Runner."""
        self.plan.keep_logits(rows)

    def decode(self, batch: Sequence[Rows]) -> Scores:
        """See Runner."""
        if any(rows.extra is not None for rows in batch):
            return self._decode_more(batch)
        counts, views = [len(rows.tokens) for rows in batch], [_view(rows) for rows in batch]
        tokens = _integers(list(chain.from_iterable(rows.tokens for rows in batch)))
        sums = accumulators([rows.cache.accumulate_rows(len(rows.tokens)) for rows in batch])
        lengths, wanted = [rows.length for rows in batch], np.arange(len(tokens), dtype=np.int32)
        places = _integers([rows.start + place for rows in batch for place in range(len(rows.tokens))])
        logits = self.plan.step(tokens, places, views, counts, wanted, lengths=lengths, accumulate=sums)
        return NativeScores(logits, self.plan.argmax.tolist())

    def prefill(self, rows: Rows, last: bool) -> Scores | None:
        """See Runner."""
        count, view = len(rows.tokens), _view(rows)
        wanted = _integers([count - 1]) if last else _NO_ROWS
        sums = accumulators([rows.cache.accumulate_prompt(count)])
        if rows.extra is not None:
            scores = self._run([rows], [view], wanted, sums)
            return scores if last else None
        logits = self.plan.step(
            _integers(rows.tokens), positions([rows]), [view], [count], wanted, lengths=[rows.length], accumulate=sums
        )
        return NativeScores(logits, self.plan.argmax.tolist()) if last else None

    def embed(self, tokens: Sequence[int], extra: RowExtra | None = None) -> Floats:
        """See Runner."""
        if extra is not None and extra.embeddings is not None:
            return embedded(self.embed([max(token, 0) for token in tokens]), tokens, extra)
        limit = self.plan.max_rows
        parts = [self.plan.embed(_integers(tokens[first : first + limit])) for first in range(0, len(tokens), limit)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def run_layers(self, first: int, last: int, hidden: Floats, rows: Rows) -> Floats:
        """See Runner. Changes `hidden` in place."""
        view, places, count = _view(rows), positions([rows]), len(rows.tokens)
        options: StepOptions = {} if rows.extra is None else row_options([rows], _NO_ROWS, 0)[0]
        options["lengths"] = [rows.length]
        options["accumulate"] = accumulators([rows.cache.accumulate_prompt(count)])
        wants = rows.cache.statistics.queries is not None
        if not wants and rows.watch is None:
            return self.plan.layers(hidden, places, [view], [count], first, last, **options)
        for index in range(first, last):
            heads, _, head_dim = self.plan.config.widths(index)
            queries = np.empty((count, heads, head_dim), np.float32)
            self.plan.layers(hidden, places, [view], [count], index, index + 1, queries, **options)
            if wants:
                rows.cache.observe(index, queries)
            if rows.watch is not None:
                rows.watch(index, queries)
        return hidden

    def _decode_more(self, batch: Sequence[Rows]) -> Scores:
        """`decode` of rows that are not all plain."""
        views = [_view(rows) for rows in batch]
        sums = accumulators([rows.cache.accumulate_rows(len(rows.tokens)) for rows in batch])
        wanted = np.arange(sum(len(rows.tokens) for rows in batch), dtype=np.int32)
        return self._run(batch, views, wanted, sums)

    def _run(
        self, batch: Sequence[Rows], views: list[Any], wanted: Whole, sums: Sequence[Accumulator | None]
    ) -> NativeScores:
        """One step with all that their extras ask for. wanted: rows to score and to tap."""
        counts, places = [len(rows.tokens) for rows in batch], positions(batch)
        options, taps = row_options(batch, wanted, self.plan.config.hidden_size)
        options["lengths"], options["accumulate"] = [rows.length for rows in batch], sums
        if any(rows.extra is not None and rows.extra.embeddings is not None for rows in batch):
            parts = [self.embed(rows.tokens, rows.extra) for rows in batch]
            hidden = parts[0] if len(parts) == 1 else np.concatenate(parts)
            logits = self.plan.forward(hidden, places, views, counts, wanted, **options)
        else:
            tokens = _integers(list(chain.from_iterable(rows.tokens for rows in batch)))
            logits = self.plan.step(tokens, places, views, counts, wanted, **options)
        return NativeScores(logits, self.plan.argmax.tolist() if len(wanted) else [], taps)

    def logits(self, hidden: Floats) -> Scores:
        """See Runner."""
        logits = self.plan.logits(np.ascontiguousarray(hidden))
        return NativeScores(logits, self.plan.argmax.tolist())


class NativeScores:
    """Scores in the plan's buffers: valid until its next call."""

    def __init__(self, values: Floats, best: list[int], taps: Mapping[int, Floats] | None = None) -> None:
        self._values = values
        self._best = best
        self.taps = taps or {}

    def logits(self, row: int) -> Floats:
        """[vocabulary] fp32 of one row."""
        return self._values[row]

    def best(self, row: int) -> int:
        """The row's arg-max, as the plan found it."""
        return self._best[row]


def _view(rows: Rows) -> Any:
    view = rows.cache.native
    if view is None:
        raise KernelError(f"this sequence has no native view: native code is off for its cache; {INSTEAD}")
    return view


def accumulators(collecting: list[Accumulator | None]) -> Sequence[Accumulator | None]:
    """As a plan takes them: none at all where no sequence collects."""
    return () if all(sums is None for sums in collecting) else collecting


def _integers(values: Sequence[int]) -> Whole:
    return np.array(values, np.int32)
