"""Two independent runs of a real claim: what one leaves open the other may decide, but they never contradict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from thrifty.api import open_model
from thrifty.claims.harness.budget import SHORT
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.running import Reproduction

pytestmark = pytest.mark.slow
NAMES = ("ada-kv", "kivi", "knorm", "streaming")


@pytest.fixture(scope="module")
def model() -> Any:
    return open_model("recall-2m")


@pytest.fixture
def context(model: Any) -> Iterator[Context]:
    budget = dataclasses.replace(SHORT, tokens=1024, items=24, answers=8)
    with Context(model, "recall-2m", budget=budget) as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
def test_two_seeds_give_no_opposite_verdicts(name: str, context: Context) -> None:
    run = Reproduction(lambda model: context, [name], models=["recall-2m"], seeds=(0, 1))
    (row,) = run.rows()
    assert not run.failed and row.run is not None
    assert len(row.run.verdicts) == 2 and {"holds", "does not hold here"} - set(row.run.verdicts.values())
