"""Another budget for an engine that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.errors import BudgetError

if TYPE_CHECKING:
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.running import Running


def resize(memory: EngineMemory, nbytes: int, sequences: Sequence[Running]) -> int:
    """Change the budget, in bytes; returns what it is then: more where accepted sequences may come to need it, or hold
    it now. Idle pages make room. The address space of caches is set when an engine is made, so one that is to grow is
    opened with the most that it may ever have, and made smaller. Raises BudgetError where the memory was never bounded.
    """
    ledger, tree = memory.ledger, memory.cache.tree
    if ledger.budget is None:
        raise BudgetError("this engine's memory has no bound that could change; open it with memory=…")
    wanted = max(nbytes, memory.least_budget(sequences))
    if ledger.committed > wanted:
        memory.cache.pressure(ledger.committed - wanted)
    memory.budget = ledger.budget = max(wanted, ledger.committed)
    if tree is not None:
        tree.capacity = max(1, ledger.budget // 2)
    return ledger.budget
