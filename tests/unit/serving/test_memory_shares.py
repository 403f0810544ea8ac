"""One memory for several models: who gets how much, and who is let go."""

from __future__ import annotations

import asyncio

import pytest

from thrifty.errors import BudgetError
from thrifty.serving.errors import RequestError
from thrifty.serving.memory_shares import MemoryShares


class FakeModel:
    """A loaded model that needs `least` bytes, and cannot be made smaller."""

    def __init__(self, name: str, weights: int, used: float = 0.0, users: int = 0, least: int = 0) -> None:
        self.name, self.weights, self.used, self.users = name, weights, used, users
        self.least = least or weights + 10
        self.budget = 10_000
        self.gone = False

    async def resize(self, nbytes: int) -> int:
        self.budget = max(nbytes, self.least)
        return self.budget

    async def let_go(self) -> None:
        self.gone = True


def shares(budget: int | None = 1000) -> MemoryShares:
    return MemoryShares(budget, least_room=50)


def test_each_has_its_weights_and_an_equal_share_of_the_rest() -> None:
    models = [FakeModel("a", 100), FakeModel("b", 300), FakeModel("c", 300)]
    assert asyncio.run(shares().divide(models))
    assert [model.budget for model in models] == [200, 400, 400]


def test_without_a_bound_nothing_is_divided_and_nobody_let_go() -> None:
    models = [FakeModel("a", 100), FakeModel("b", 300)]
    asyncio.run(shares(None).make_room("c", 10**12, models))
    assert asyncio.run(shares(None).divide(models))
    assert [model.budget for model in models] == [10_000, 10_000] and not any(model.gone for model in models)


def test_what_a_busy_model_holds_beyond_its_share_the_idle_ones_go_without() -> None:
    busy, idle = FakeModel("a", 100, users=2, least=800), FakeModel("b", 100)
    assert asyncio.run(shares().divide([busy, idle]))
    assert (busy.budget, idle.budget) == (800, 200)
    busy.least = 110
    assert asyncio.run(shares().divide([busy, idle]))
    assert (busy.budget, idle.budget) == (500, 500)


def test_the_least_recently_used_model_is_let_go_for_a_newcomer() -> None:
    models = [FakeModel("a", 300, used=2), FakeModel("b", 300, used=1), FakeModel("c", 250, used=3)]
    asyncio.run(shares().make_room("d", 200, models))
    assert [model.gone for model in models] == [False, True, False]


def test_models_are_made_smaller_before_any_is_let_go() -> None:
    model = FakeModel("a", 300)
    model.budget = 1000
    asyncio.run(shares().make_room("b", 200, [model]))
    assert not model.gone and model.budget == 550


def test_a_model_in_use_is_never_let_go() -> None:
    models = [FakeModel("a", 500, used=1, users=1), FakeModel("b", 400, used=2)]
    asyncio.run(shares().make_room("c", 300, models))
    assert [model.gone for model in models] == [False, True]
    with pytest.raises(RequestError, match=r"no memory for the model 'c' now: the requests of 'a' \(1\)") as refused:
        asyncio.run(shares().make_room("c", 600, models[:1]))
    assert (refused.value.status, refused.value.code) == (503, "no_memory") and refused.value.retry_after


def test_a_model_that_never_fits_is_refused_with_both_numbers() -> None:
    model = FakeModel("a", 100)
    with pytest.raises(BudgetError, match="1.001 kB, more than the memory of 1 kB for all models"):
        asyncio.run(shares().make_room("b", 1001, [model]))
    assert not model.gone


def test_a_newcomer_that_needs_more_than_its_share_has_others_let_go() -> None:
    old, newest = FakeModel("a", 200), FakeModel("b", 300, least=900)
    asyncio.run(shares().make_good("b", newest, [old, newest]))
    assert old.gone and newest.budget == 1000
