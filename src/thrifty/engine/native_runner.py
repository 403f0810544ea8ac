"""The native runner: steps as replays of a compiled plan; what a plan cannot do goes to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thrifty.decoding.strategy import Scores
from thrifty.engine.plan import NativePlan, PlanUnsupported, compile_plan
from thrifty.engine.runner import ReferenceRunner, Rows, Runner
from thrifty.errors import KernelError
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.sums import Accumulator
    from thrifty.models.model import Model

EMPTY = torch.empty(0, dtype=torch.int32)


def choose_runner(model: Model, *, native: bool | None, threads: int | None, rows: int) -> Runner:
    """The native runner where the model and the machine can, else the reference, each with its reason.

    rows: the most of a step. Raises KernelError where `native` insists on what is not possible.
    """
    if threads is not None:
        dispatch.set_threads(threads)
    if native is False:
        return ReferenceRunner(model, "native code was turned off")
    try:
        plan = compile_plan(model.decoder, rows)
    except PlanUnsupported as error:
        if native:
            raise KernelError(f"the native plan was asked for, but {error}") from error
        return ReferenceRunner(model, str(error))
    module = dispatch.require()
    reason = f"native plan of {len(model.config.layers)} layers, {module.isa()}, {module.threads()} threads"
    return NativeRunner(plan, ReferenceRunner(model, "what the native attention does not do"), reason)


class NativeRunner:
    """Runs sequences that have a native view through the plan, the others through the reference runner.

    A sequence has none while a policy selects slots or sums attention over slots with holes. Both paths give a row
    the same bits in any batch, and a sequence stays on its path, so results do not depend on who else runs.
    """

    name = "native"

    def __init__(self, plan: NativePlan, reference: ReferenceRunner, reason: str) -> None:
        self.plan = plan
        self.reason = reason
        self.layers = len(plan.config.layers)
        self._reference = reference

    @property
    def workspace(self) -> int:
        """See Runner."""
        return self.plan.nbytes

    def keep_logits(self, rows: int) -> None:
        """See Runner."""
        self.plan.keep_logits(rows)

    def decode(self, batch: Sequence[Rows]) -> Scores:
        """See Runner."""
        views = [rows.cache.native for rows in batch]
        if None not in views:
            return self._decode(batch, views)
        slow = [rows for rows, view in zip(batch, views, strict=True) if view is None]
        fast = [rows for rows, view in zip(batch, views, strict=True) if view is not None]
        parts: dict[bool, Scores] = {True: self._reference.decode(slow)}
        if fast:
            parts[False] = self._decode(fast, [view for view in views if view is not None])
        return _joined(batch, [view is None for view in views], parts)

    def prefill(self, rows: Rows, last: bool) -> Scores | None:
        """See Runner."""
        view = rows.cache.native
        if view is None:
            return self._reference.prefill(rows, last)
        count = len(rows.tokens)
        wanted = torch.tensor([count - 1], dtype=torch.int32) if last else EMPTY
        sums = _accumulators([rows.cache.accumulate_prompt(count)])
        logits = self.plan.step(
            _integers(rows.tokens), _positions(rows), [view], [count], wanted, lengths=[rows.length], accumulate=sums
        )
        return NativeScores(logits, self.plan.argmax.tolist()) if last else None

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """See Runner."""
        limit = self.plan.max_rows
        parts = [self.plan.embed(_integers(tokens[first : first + limit])) for first in range(0, len(tokens), limit)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def run_layers(self, first: int, last: int, hidden: Tensor, rows: Rows) -> Tensor:
        """See Runner. Changes `hidden` in place."""
        view = rows.cache.native
        if view is None:
            return self._reference.run_layers(first, last, hidden, rows)
        positions, count, lengths = _positions(rows), len(rows.tokens), [rows.length]
        sums = _accumulators([rows.cache.accumulate_prompt(count)])
        wants = rows.cache.statistics.queries is not None
        if not wants and rows.watch is None:
            return self.plan.layers(hidden, positions, [view], [count], first, last, lengths=lengths, accumulate=sums)
        queries = torch.empty(count, self.plan.config.heads, self.plan.config.head_dim)
        for index in range(first, last):
            self.plan.layers(
                hidden, positions, [view], [count], index, index + 1, queries, lengths=lengths, accumulate=sums
            )
            if wants:
                rows.cache.observe(index, queries)
            if rows.watch is not None:
                rows.watch(index, queries)
        return hidden

    def logits(self, hidden: Tensor) -> Scores:
        """See Runner."""
        logits = self.plan.logits(hidden.contiguous())
        return NativeScores(logits, self.plan.argmax.tolist())

    def _decode(self, batch: Sequence[Rows], views: Sequence[Any]) -> Scores:
        counts = [len(rows.tokens) for rows in batch]
        tokens = list(chain.from_iterable(rows.tokens for rows in batch))
        sums = _accumulators([rows.cache.accumulate_rows(len(rows.tokens)) for rows in batch])
        if not self.plan.by_length:
            positions = [rows.start + place for rows in batch for place in range(len(rows.tokens))]
            return NativeScores(*self.plan.decode(tokens, positions, views, counts, sums))
        wanted, lengths = torch.arange(len(tokens), dtype=torch.int32), [rows.length for rows in batch]
        place = torch.cat([_positions(rows) for rows in batch])
        logits = self.plan.step(_integers(tokens), place, views, counts, wanted, lengths=lengths, accumulate=sums)
        return NativeScores(logits, self.plan.argmax.tolist())


class NativeScores:
    """Scores in the plan's buffers: valid until its next call."""

    def __init__(self, values: Tensor, best: list[int]) -> None:
        self._values = values
        self._best = best

    def logits(self, row: int) -> Tensor:
        """[vocabulary] fp32 of one row."""
        return self._values[row]

    def best(self, row: int) -> int:
        """The row's arg-max, as the plan found it."""
        return self._best[row]


class JoinedScores:
    """Rows of several scores in the batch's order."""

    def __init__(self, places: list[tuple[Scores, int]]) -> None:
        self._places = places

    def logits(self, row: int) -> Tensor:
        """[vocabulary] fp32 of one row."""
        scores, place = self._places[row]
        return scores.logits(place)

    def best(self, row: int) -> int:
        """The row's arg-max."""
        scores, place = self._places[row]
        return scores.best(place)


def _joined(batch: Sequence[Rows], slow: Sequence[bool], parts: dict[bool, Scores]) -> JoinedScores:
    next_row = {True: 0, False: 0}
    places = []
    for rows, kind in zip(batch, slow, strict=True):
        for _ in rows.tokens:
            places.append((parts[kind], next_row[kind]))
            next_row[kind] += 1
    return JoinedScores(places)


def _accumulators(found: list[Accumulator | None]) -> Sequence[Accumulator | None]:
    """As a plan takes them: none at all where no sequence collects."""
    return () if all(one is None for one in found) else found


def _integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _positions(rows: Rows) -> Tensor:
    return torch.arange(rows.start, rows.start + len(rows.tokens), dtype=torch.int32)
