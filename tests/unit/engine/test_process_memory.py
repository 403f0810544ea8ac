"""A bound on the whole process: what it holds is taken off, and the rest is the ledger's budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.admission import process_memory
from thrifty.engine.admission.process_memory import GROWTH, left_for_ledger
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError
from thrifty.formats.linear import DenseLinear
from thrifty.storage.process import peak_resident, resident


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> int:
    """A process that holds 100 MB."""
    monkeypatch.setattr(process_memory, "resident", lambda: 100_000_000)
    monkeypatch.setattr(process_memory, "resident_of", lambda arrays: 0)
    return 100_000_000


def engine_with(**options: Any) -> Engine:
    return Engine(tiny_model(packed=True), threads=1, **options)


def test_the_ledger_gets_what_the_process_leaves(held: int) -> None:
    engine = engine_with(process_memory="300MB")
    assert engine.memory.ledger.budget == 300_000_000 - held - GROWTH
    engine.close()


def test_the_less_of_both_bounds_holds(held: int) -> None:
    engine = engine_with(process_memory="300MB", memory="50MB")
    assert engine.memory.ledger.budget == 50_000_000
    engine.close()


def test_too_little_is_refused_with_what_would_do(held: int) -> None:
    with pytest.raises(
        BudgetError, match=r"process memory of 110 MB is too little: the process holds 100 MB.*use more than"
    ):
        engine_with(process_memory="110MB")
    with pytest.raises(BudgetError, match="process_memory = 'much' is not a size"):
        engine_with(process_memory="much")


def test_what_would_do_does() -> None:
    need = 50 + GROWTH + 70
    assert left_for_ledger(need + 1, 50, 70) == 71
    with pytest.raises(BudgetError):
        left_for_ledger(50 + GROWTH, 50, 70)


@pytest.mark.long
def test_a_process_stays_within_its_bound() -> None:
    bound = resident() + GROWTH + 40_000_000
    engine = engine_with(process_memory=bound)
    engine.submit(Request(prompt=text_tokens(2000), sampling=SamplingParameters(max_tokens=200))).result()
    now = resident()
    assert now <= bound
    assert peak_resident() >= now  # asked later: to ask may take a page
    engine.close()


def test_what_does_not_fit_is_told_as_both_figures(held: int) -> None:
    bound = held + GROWTH + 1000
    with pytest.raises(BudgetError, match=r"one token does not fit.*, a process memory of 1\d\d") as refused:
        engine_with(process_memory=bound)
    assert "budget of 1 kB" in str(refused.value)


def test_weights_in_memory_are_not_counted_twice() -> None:
    model = tiny_model(packed=True)
    before = process_memory.baseline(model)
    weights = np.ones((8192, 4096), np.float32)
    model.linears["head"] = DenseLinear(8192, 4096, weights, packed=False)
    assert abs(process_memory.baseline(model) - before) < weights.nbytes // 4
