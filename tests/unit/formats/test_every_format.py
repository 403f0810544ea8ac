"""What every stored format promises: a format is held to it by existing."""

from __future__ import annotations

from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
from tests.unit.kernels.native_pages import EXACT, QUICK_ISAS, native, using

from thrifty.arrays import Floats
from thrifty.formats.linear import PackedLinear
from thrifty.formats.packed import formats
from thrifty.kernels import dispatch

ROWS, COLUMNS = 41, 512  # three tiles, the last of them part full
BATCHES = (1, 2, 3, 5, 8, 9, 33)


@cache
def layers() -> dict[str, PackedLinear]:
    made = [linear for kind in formats() for linear in kind.examples(ROWS, COLUMNS)]
    return {f"{linear.kind} {linear.label} {8 * linear.nbytes}": linear for linear in made}


def activations(count: int) -> Floats:
    x = np.random.default_rng(1).standard_normal((count, COLUMNS), np.float32)
    x[0, 32:96] = 0
    return x


ALL = pytest.mark.parametrize("name", layers())


def test_every_format_is_there() -> None:
    kinds = {linear.kind for linear in layers().values()}
    assert kinds == {kind.kind for kind in formats()}
    assert {"group", "dense", "signs", "bit planes", "superblock"} <= kinds


@ALL
def test_tiles_rows_and_files_are_the_same_weight(name: str) -> None:
    linear = layers()[name]
    full, picked = linear.dequantize(), np.array([40, 0, 17, 17])
    assert full.shape == (ROWS, COLUMNS) and np.isfinite(full).all() and full.any()
    assert np.array_equal(linear.tile(16, 35), full[16:35])
    assert np.array_equal(linear.rows(picked), full[picked])
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert (again.label, again.nbytes) == (linear.label, linear.nbytes)
    assert np.array_equal(again.dequantize(), full)


@ALL
def test_bytes_are_those_of_all_arrays(name: str) -> None:
    """Of arrays that two layers share, a half each."""
    linear = layers()[name]
    sizes = (array.nbytes // (2 if own in linear.shared else 1) for own, array in linear.state().items())
    assert linear.nbytes == sum(sizes)
    assert linear.nbytes >= ROWS * COLUMNS / 8, "less than a bit a weight"


@ALL
@pytest.mark.parametrize("isa", QUICK_ISAS)
def test_a_row_is_the_same_in_any_batch_natively(name: str, isa: str) -> None:
    linear, x = layers()[name], activations(33)
    if linear.native() is None:
        pytest.skip("native code has no layout of it")
    with using(isa):
        together = dispatch.matmul(linear, x)
        for count in BATCHES:
            assert np.array_equal(dispatch.matmul(linear, x[:count]), together[:count]), count
            assert np.array_equal(dispatch.matmul(linear, x[-count:]), together[-count:]), count
    oracle = linear.oracle(x)  # type: ignore[attr-defined]  # every format with a layout has one
    if isa in EXACT:
        np.testing.assert_allclose(together, oracle, rtol=1e-6, atol=1e-6 * np.abs(oracle).max())
    else:
        np.testing.assert_allclose(together, oracle, rtol=1e-5, atol=1e-5 * np.abs(oracle).max())


@ALL
def test_products_without_native_code_are_near_those_with_it(name: str) -> None:
    """Natively activations are rounded to bytes or halves; what a format rounds itself is rounded in both."""
    linear, x = layers()[name], activations(3)
    with patch.object(dispatch, "native", return_value=None):
        plain = linear.multiply(x)
    assert np.abs(linear.multiply(x) - plain).max() < 0.03 * np.abs(plain).max()


@ALL
def test_native_code_reads_single_rows(name: str) -> None:
    linear = layers()[name]
    if linear.native() is None:
        pytest.skip("native code has no layout of it")
    found = np.empty((ROWS, COLUMNS), np.float32)
    native().linear_rows(dispatch.packed(linear), np.arange(ROWS), found)
    np.testing.assert_allclose(found, linear.dequantize(), rtol=1e-6)
