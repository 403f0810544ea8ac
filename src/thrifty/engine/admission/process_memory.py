"""A bound on the whole process, as the system counts it: what of it is left for the ledger.

The ledger's law is weights, workspace and caches. Beside them a process holds the interpreter, its libraries and the
tokenizer: the baseline, measured before the first answer.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from thrifty.errors import BudgetError
from thrifty.storage.budget import format_size, parse_size
from thrifty.storage.heap import hand_back
from thrifty.storage.process import resident, resident_of

if TYPE_CHECKING:
    from thrifty.models.model import Model

GROWTH = 24 << 20
"""Bytes kept for what comes: modules that a first answer imports, the temporary arrays of techniques, requests."""


def baseline(model: Model) -> int:
    """Bytes that this process holds beside weights, workspace and caches. The tokenizer, which is read when it is
    first used, is read now. Weights that are in memory already are not counted: the ledger has them.
    """
    if model.tokenizer is not None:
        model.tokenizer.encode("a")
    gc.collect()
    hand_back()
    weights = [array for linear in model.linears.values() for array in linear.state().values()]
    return max(0, resident() - resident_of([*weights, *model.norms.values()]))


def ledger_budget(process_memory: int, model: Model) -> int:
    """The bytes of `process_memory` that are left for the ledger in this process. Raises BudgetError where none are."""
    return left_for_ledger(process_memory, baseline(model), model.nbytes)


def left_for_ledger(process_memory: int, held: int, weights: int) -> int:
    """The bytes of `process_memory` beside a baseline of `held` bytes. weights: bytes of the model's, for the error.

    Raises BudgetError where nothing is left, with what would do.
    """
    left = process_memory - held - GROWTH
    if left <= 0:
        raise BudgetError(
            f"a process memory of {format_size(process_memory)} is too little: the process holds {format_size(held)} "
            f"before any weight, and {format_size(GROWTH)} are kept for what it does beside. With "
            f"{format_size(weights)} of weights use more than {format_size(held + GROWTH + weights)}"
        )
    return left


def budget_of(
    memory: int | str | None, process_memory: int | str | None, model: Model
) -> tuple[int | None, int | None]:
    """The ledger's budget, and the bytes of the process beside it, in bytes; None: no bound. See `Engine`."""
    budget = None if memory is None else parse_size(memory)
    if process_memory is None:
        return budget, None
    whole = parse_size(process_memory, "process_memory")
    left = ledger_budget(whole, model)
    return left if budget is None else min(budget, left), whole - left
