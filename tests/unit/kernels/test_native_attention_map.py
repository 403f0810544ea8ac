"""Native probabilities over plain keys against the softmax written out in fp64, and whatever cuts rows and slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import ISAS, native, normal, using

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import KernelError
from thrifty.kernels import dispatch


def expected(
    queries: Floats, keys: Floats, sees: Integers, *, scale: float, softcap: float = 0.0, bias: Floats | None = None
) -> Array:
    """fp64 [rows, slots]."""
    logits = queries.astype(np.float64) @ keys.T.astype(np.float64) * scale
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    if bias is not None:
        logits += bias
    logits[np.arange(len(keys)) >= sees[:, None]] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20), slots=st.integers(1, 300), dim=st.sampled_from([1, 16, 18, 64, 80, 128, 256]),
    softcap=st.sampled_from([0.0, 5.0]), biased=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_it_is_the_softmax(isa: str, rows: int, slots: int, dim: int, softcap: float, biased: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, keys = 3 * normal(rows, dim, seed=seed), normal(slots, dim, seed=seed + 1)
    sees = generator.integers(1, slots + 1, rows)
    options: dict[str, Any] = {"scale": dim**-0.5, "softcap": softcap}
    if biased:
        options["bias"] = normal(slots, seed=seed + 2)
        options["bias"][generator.random(slots) < 0.3] = -np.inf
        options["bias"][0] = 0.0  # every row sees something
    with using(isa):
        found = dispatch.attention_map(queries, keys, sees, **options)
    np.testing.assert_allclose(found, expected(queries, keys, sees, **options), rtol=2e-5, atol=1e-7)
    hidden = np.arange(slots) >= sees[:, None]
    assert not found[hidden].any()


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_is_the_same_in_any_number_of_rows_and_slots(isa: str) -> None:
    queries, keys, bias = normal(40, 64), normal(700, 64, seed=1), normal(700, seed=2)
    sees = np.arange(120, 160) * 4
    with using(isa):
        together = dispatch.attention_map(queries, keys, sees, scale=0.3, bias=bias)
        for row in (0, 1, 5, 6, 39):
            seen, some = int(sees[row]), slice(row, row + 1)
            alone = dispatch.attention_map(queries[some], keys[:seen], sees[some], scale=0.3, bias=bias[:seen])
            assert np.array_equal(alone[0], together[row, :seen])


def test_threads_do_not_change_a_bit() -> None:
    module = native()
    if module.available_threads() < 2:
        pytest.skip("one processor only")
    before, found = module.threads(), []
    try:
        for threads in (1, 2):
            module.set_threads(threads)
            found.append(dispatch.attention_map(normal(50, 64), normal(999, 64), np.full(50, 999), scale=0.3))
    finally:
        module.set_threads(before)
    assert np.array_equal(*found)


def test_large_logits_and_rows_that_see_nothing_but_minus_infinity() -> None:
    queries, keys = np.full((2, 16), 1e4, np.float32), np.zeros((70, 16), np.float32)
    keys[3] = 1e4
    native()
    found = dispatch.attention_map(queries, keys, np.array([70, 3]), scale=1.0)
    assert found[0, 3] == 1.0 and found[0].sum() == 1.0
    np.testing.assert_allclose(found[1, :3], 1 / 3, rtol=1e-6)
    bias = np.full(70, -np.inf, np.float32)
    assert np.isnan(dispatch.attention_map(queries, keys, np.array([70, 3]), scale=1.0, bias=bias)[:, 0]).all()


def test_no_rows_give_no_rows() -> None:
    native()
    none = np.empty((0, 64), np.float32)
    assert dispatch.attention_map(none, normal(9, 64), np.empty(0, np.int64), scale=1.0).shape == (0, 9)


def test_wrong_calls_are_refused() -> None:
    native()
    queries, keys, sees = normal(3, 64), normal(9, 64), np.array([1, 5, 9])
    with pytest.raises(KernelError, match=r"keys is float32 \(9, 32\), expected float32 \(any, 64\)"):
        dispatch.attention_map(queries, normal(9, 32), sees, scale=1.0)
    with pytest.raises(KernelError, match=r"sees is int64 \(2,\), expected int64 \(3,\)"):
        dispatch.attention_map(queries, keys, sees[:2], scale=1.0)
    with pytest.raises(KernelError, match=r"bias is float32 \(8,\), expected float32 \(9,\)"):
        dispatch.attention_map(queries, keys, sees, scale=1.0, bias=normal(8))
    for wrong in (0, 10):
        with pytest.raises(KernelError, match=f"row 1 sees {wrong} slots; there are 9, and it must see one at least"):
            dispatch.attention_map(queries, keys, np.array([1, wrong, 9]), scale=1.0)
