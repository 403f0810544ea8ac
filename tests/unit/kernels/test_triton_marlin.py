"""The Triton kernel of MARLIN's product, in Triton's interpreter, against the product in NumPy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thrifty.errors import KernelError
from thrifty.kernels.reference import marlin

RANDOM = np.random.default_rng(5)
CODES = RANDOM.integers(0, 16, (256, 384), np.uint8)
SCALES = (RANDOM.standard_normal((256, 3)) / 16).astype(np.float16)
PACKED = marlin.pack(CODES, SCALES)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton (extra gpu) is not installed")
    pytest.importorskip("torch", reason="torch, whose tensors the kernel takes, is not installed")
    module = importlib.reload(importlib.import_module("thrifty.kernels.triton.marlin"))
    made: Callable[..., Any] = module.marlin_matmul
    return made


def tensors(*arrays: Any) -> list[Any]:
    import torch

    return [torch.from_numpy(array.copy()) for array in arrays]


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 32, 64, 65])
def test_it_is_the_product_of_the_reference(kernel: Callable[..., Any], rows: int) -> None:
    x = RANDOM.standard_normal((rows, 384)).astype(np.float16)
    expected = marlin.matmul(x, *PACKED)
    found = kernel(*tensors(x, *PACKED)).numpy().astype(np.float32)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_single_weights_come_from_their_own_places(kernel: Callable[..., Any]) -> None:
    """Unit vectors read single columns: exact products, so that one wrong nibble or scale shows."""
    x = np.zeros((64, 384), np.float16)
    columns = RANDOM.permutation(384)[:64]
    x[np.arange(64), columns] = 1
    weight = (CODES.astype(np.float32) - 8) * np.repeat(SCALES.astype(np.float32), 128, axis=1)
    found = kernel(*tensors(x, *PACKED)).numpy()
    assert np.array_equal(found, weight[:, columns].T.astype(np.float16))


def test_a_row_of_nan_stays_in_its_row(kernel: Callable[..., Any]) -> None:
    x = RANDOM.standard_normal((5, 384)).astype(np.float16)
    clean = kernel(*tensors(x, *PACKED)).numpy()
    x[2, 7] = np.nan
    found = kernel(*tensors(x, *PACKED)).numpy()
    others = [0, 1, 3, 4]
    assert np.isnan(found[2]).all() and np.array_equal(found[others], clean[others])


def test_no_rows_and_wrong_arguments(kernel: Callable[..., Any]) -> None:
    x, words, scales = tensors(np.zeros((2, 384), np.float16), *PACKED)
    assert kernel(x[:0], words, scales).shape == (0, 256)
    with pytest.raises(KernelError, match=r"x is float32 \(2, 384\)"):
        kernel(x.float(), words, scales)
    with pytest.raises(KernelError, match=r"scales is float16 \(2, 256\)"):
        kernel(x, words, scales[:2])
    with pytest.raises(KernelError, match="multiple of 256 rows"):
        kernel(x, words[:, :256].contiguous(), scales)
