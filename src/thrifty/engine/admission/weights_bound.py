"""A bound on a model's weights that is known before any of them is converted."""

from __future__ import annotations

import gc
from collections.abc import Callable

from thrifty.engine.admission.process_memory import GROWTH
from thrifty.errors import BudgetError
from thrifty.storage.budget import format_size
from thrifty.storage.heap import hand_back
from thrifty.storage.process import resident


def weights_bound(memory: int | None, process_memory: int | None) -> Callable[[int], None]:
    """What `models.load` asks before it converts: raises BudgetError where the weights alone exceed `memory`, or what
    `process_memory` leaves beside this process as it is now, both in bytes. What passes is checked in full by Engine.
    """

    def check(weights: int) -> None:
        if memory is not None and weights > memory:
            raise BudgetError(f"{_needs(weights)}, more than the memory of {format_size(memory)}. {_REMEDY}")
        if process_memory is None:
            return
        gc.collect()
        hand_back()
        held = resident() + GROWTH
        if weights + held > process_memory:
            raise BudgetError(
                f"{_needs(weights)} and this process {format_size(held)} beside them, together more than the process "
                f"memory of {format_size(process_memory)}. {_REMEDY}"
            )

    return check


_REMEDY = "Nothing was converted. Give it more, use a smaller model, or a recipe that stores weights in fewer bytes"


def _needs(weights: int) -> str:
    return f"the weights alone take {format_size(weights)}"
