"""One memory for several models: each has its weights, and the rest is shared equally.

The shares are set anew when a model comes or goes. A model never loses what its accepted requests may come to need;
what no request uses is let go, the least recently used model first, where a newcomer finds no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from thrifty.errors import BudgetError
from thrifty.serving.errors import RequestError
from thrifty.storage.budget import format_size

RETRY_SECONDS = 5.0


class Tenant(Protocol):
    """A loaded model, as the shares see it. used: when it was used last. Sizes are bytes."""

    name: str
    used: float

    @property
    def users(self) -> int:
        """Requests that use it now."""
        ...

    @property
    def weights(self) -> int:
        """Of its weights, which it always holds."""
        ...

    @property
    def budget(self) -> int:
        """That it may hold now."""
        ...

    async def resize(self, nbytes: int) -> int:
        """Change the budget; returns the one that it has then, more where its requests need more."""
        ...

    async def let_go(self) -> None:
        """Give everything back."""
        ...


class MemoryShares:
    """Divides a budget among loaded models."""

    def __init__(self, budget: int | None, least_room: int) -> None:
        """budget: bytes for all together; None: no bound, and nothing is ever divided. least_room: bytes that every
        model is to have beside its weights.
        """
        self.budget = budget
        self._least_room = least_room

    async def make_room(self, name: str, weights: int, loaded: Sequence[Tenant]) -> None:
        """Have room for a model that is to be loaded: the others give what is beyond their share, and where that does
        not do, those that no request uses are let go.

        Raises RequestError (503) that names who holds the memory, BudgetError where the budget alone is too little.
        """
        if self.budget is None:
            return
        if weights > self.budget:
            raise BudgetError(
                f"the weights of '{name}' take {format_size(weights)}, more than the memory of "
                f"{format_size(self.budget)} for all models. Give it more, or use a smaller model"
            )
        others = list(loaded)
        while others and not await self._shrunk(others, weights):
            others.remove(await self._let_go_of_one(name, others))

    async def divide(self, loaded: Sequence[Tenant]) -> bool:
        """Give each its weights and an equal share of the rest. Returns whether all together stay within the budget:
        False where the one that was loaded last needs more than its share at least.
        """
        if self.budget is None or not loaded:
            return True
        share = (self.budget - sum(tenant.weights for tenant in loaded)) // len(loaded)
        targets = [tenant.weights + share for tenant in loaded]
        now = [await tenant.resize(min(target, tenant.budget)) for tenant, target in zip(loaded, targets, strict=True)]
        for place, tenant in enumerate(loaded):
            if tenant.users == 0 and (excess := sum(now) - self.budget) > 0:
                now[place] = await tenant.resize(max(1, now[place] - excess))
        for place, tenant in enumerate(loaded):
            rest = self.budget - sum(now)
            if rest > 0 and now[place] < targets[place]:
                now[place] = await tenant.resize(min(targets[place], now[place] + rest))
        return sum(now) <= self.budget

    async def make_good(self, name: str, newest: Tenant, loaded: Sequence[Tenant]) -> None:
        """`divide` after a model was loaded, letting go of others until it fits. Raises RequestError (503)."""
        others = [tenant for tenant in loaded if tenant is not newest]
        while not await self.divide([*others, newest]):
            others.remove(await self._let_go_of_one(name, others))

    async def _shrunk(self, others: Sequence[Tenant], weights: int) -> bool:
        """Have the others give back what is beyond their share. Returns whether there is room now."""
        assert self.budget is not None
        room = self.budget - weights - sum(other.weights for other in others)
        share = room // (len(others) + 1)
        if share < self._least_room:
            return False
        held = [await other.resize(min(other.budget, other.weights + share)) for other in others]
        return sum(held) + weights + self._least_room <= self.budget

    async def _let_go_of_one(self, name: str, others: Sequence[Tenant]) -> Tenant:
        """The least recently used of those that nobody uses. Raises RequestError where there is none."""
        idle = [other for other in others if not other.users]
        if not idle:
            told = ", ".join(f"'{other.name}' ({other.users})" for other in others) or "nobody else"
            raise RequestError(
                f"there is no memory for the model '{name}' now: the requests of {told} hold it; ask again soon",
                503,
                "model",
                "no_memory",
                RETRY_SECONDS,
            )
        tenant = min(idle, key=lambda other: other.used)
        await tenant.let_go()
        return tenant
