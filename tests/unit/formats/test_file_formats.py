"""Every type of a GGUF file as a stored linear layer: native re-ordering against NumPy's, values, bytes, products."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from tests.ggml_rows import HALVES, random_rows
from tests.unit.formats.test_matmul_reference import normal

from thrifty.arrays import BFLOAT16, Bytes
from thrifty.formats.gguf import FORMATS
from thrifty.formats.linear import PackedLinear
from thrifty.kernels import dispatch

LABELS = {
    "Q4_0": "int4-g32",
    "Q4_1": "int4-g32",
    "Q5_0": "int5-g32",
    "Q5_1": "int5-g32",
    "Q8_0": "int8-g32",
    "IQ4_NL": "iq4-g32",
    "BF16": "bf16",
    "F16": "f16",
}


def rows_of(kind: str, rows: int = 37, columns: int = 512) -> Bytes:
    if kind in HALVES:
        return random_rows(kind, rows, columns)
    return normal(rows, columns).astype(BFLOAT16 if kind == "BF16" else np.float16).view(np.uint8)


def layer(kind: str, raw: Bytes, columns: int = 512) -> PackedLinear:
    return PackedLinear.from_state(FORMATS[kind].meta(len(raw), columns), FORMATS[kind].pack(raw, columns))


@pytest.mark.parametrize("kind", FORMATS)
def test_native_code_and_numpy_give_the_same_bytes(kind: str) -> None:
    if dispatch.native() is None:
        pytest.skip("native code is off")
    raw = rows_of(kind)
    fast, slow = FORMATS[kind].pack(raw, 512), FORMATS[kind].pack_slowly(raw)
    assert fast.keys() == slow.keys() == FORMATS[kind].shapes(37, 512).keys()
    for name, array in fast.items():
        assert (array.shape, array.dtype) == FORMATS[kind].shapes(37, 512)[name]
        np.testing.assert_array_equal(array, slow[name])


@pytest.mark.parametrize("kind", FORMATS)
def test_without_native_code_the_bytes_are_the_same(kind: str) -> None:
    raw = rows_of(kind)
    expected = FORMATS[kind].pack(raw, 512)
    with patch.object(dispatch, "native", return_value=None):
        found = FORMATS[kind].pack(raw, 512)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_files_own_values_in_the_files_own_bytes(kind: str) -> None:
    raw = rows_of(kind, rows=48)
    stored = layer(kind, raw)
    expected = dequantize(raw, GGMLQuantizationType[kind]).reshape(48, 512)
    np.testing.assert_array_equal(stored.dequantize(), expected)
    assert stored.nbytes == raw.nbytes
    assert stored.label == LABELS.get(kind, kind.lower())


@pytest.mark.parametrize("kind", FORMATS)
def test_products_are_the_oracles(kind: str) -> None:
    stored, x = layer(kind, rows_of(kind)), normal(5, 512, seed=1)
    stored.set_bias(normal(37))
    if dispatch.native() is None:
        pytest.skip("native code is off")
    expected = stored.oracle(x) + stored.bias  # type: ignore[attr-defined]
    np.testing.assert_allclose(dispatch.matmul(stored, x) + stored.bias, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stored.multiply(x), expected, rtol=1e-4, atol=1e-3)
    if kind not in ("F16", "BF16"):
        assert np.array_equal(stored.multiply(x), expected)
