"""Engines share the threads of native code, and say where they disagree."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from tests.tiny import tiny_model

from thrifty import Thrifty, ThriftyWarning
from thrifty.engine.engine import Engine
from thrifty.errors import KernelError
from thrifty.kernels import dispatch
from thrifty.kernels.threads import PoolThreads

pytestmark = pytest.mark.skipif(
    dispatch.native() is None or dispatch.require().available_threads() < 2, reason="native code and two processors"
)
DISAGREE = "now runs with threads = 2; an open engine of this process asked for 1, and all share one pool"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = dispatch.threads()
    yield
    dispatch.set_threads(before)


def test_engines_that_agree_or_do_not_ask_share_in_silence() -> None:
    model = tiny_model(packed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Thrifty(model, threads=2) as first, Thrifty(model, threads=2) as second, Thrifty(model) as third:
            assert [opened.engine.probe().threads for opened in (first, second, third)] == [2, 2, 2]
            assert third.generate("x", max_tokens=3, ignore_eos=True).token_ids
        with Thrifty(model, threads=1) as later:
            assert later.engine.probe().threads == 1


def test_one_that_asks_for_another_number_changes_it_for_all_and_says_so() -> None:
    model = tiny_model(packed=True)
    with Thrifty(model, threads=1) as first:
        alone = first.generate("hello", max_tokens=12, ignore_eos=True).token_ids
        with pytest.warns(ThriftyWarning, match=DISAGREE):
            second = Thrifty(model, threads=2)
        with second:
            assert first.engine.probe().threads == second.engine.probe().threads == 2
            assert first.generate("hello", max_tokens=12, ignore_eos=True).token_ids == alone


def test_an_engine_that_was_dropped_asks_for_nothing() -> None:
    model = tiny_model(packed=True)
    engine = Engine(model, threads=1)
    del engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Engine(model, threads=2).close()


def test_a_number_that_does_not_work_changes_nothing() -> None:
    pool, before = PoolThreads(), dispatch.threads()
    owner = PoolThreads()
    with pytest.raises(KernelError, match="threads = 0; use 1 or more"):
        pool.set(0, owner)
    with pytest.raises(KernelError, match="this process may use 1 to"):
        pool.set(100_000, owner)
    assert dispatch.threads() == before
    pool.set(1, owner)
    with pytest.warns(ThriftyWarning, match=DISAGREE):
        pool.set(2)
    pool.set(1, owner)
    pool.release(owner)
    pool.release(owner)
    pool.set(2)
