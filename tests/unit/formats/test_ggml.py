"""ggml's types: every bit of raw rows against the gguf package."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tests.ggml_rows import HALVES, random_rows

from thrifty.kernels.reference import ggml


@pytest.mark.parametrize("kind", HALVES)
def test_values_are_those_of_the_gguf_package(kind: str) -> None:
    raw = random_rows(kind)
    expected = dequantize(raw, GGMLQuantizationType[kind])
    assert expected.any()
    np.testing.assert_array_equal(ggml.values(kind, raw), expected)


@pytest.mark.parametrize("kind", ggml.PLAIN)
def test_values_without_codes(kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    raw = quantize(values, GGMLQuantizationType[kind]).view(np.uint8).reshape(4, -1)
    expected = dequantize(raw, GGMLQuantizationType[kind]).reshape(4, 64)
    np.testing.assert_array_equal(ggml.values(kind, raw), expected)


def test_every_quantised_type_is_of_one_or_of_two_levels() -> None:
    assert {*ggml.GROUPED, *ggml.SUPERBLOCK} == HALVES.keys()


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_every_bit_of_a_block_changes_what_is_read(kind: str) -> None:
    """Nothing of a block is left out: each of its bits changes codes, scales, minimums, d or dmin."""
    raw = random_rows(kind, rows=1, columns=256)
    read = ggml.SUPERBLOCK[kind]

    def parts(rows: np.ndarray) -> bytes:
        found = read(rows)
        arrays = (found.codes, found.scales, found.minimums, found.d, found.dmin)
        return b"|".join(b"" if array is None else array.tobytes() for array in arrays)

    seen = {parts(raw)}
    for bit in range(8 * raw.shape[1]):
        changed = raw.copy()
        changed[0, bit // 8] ^= 1 << bit % 8
        seen.add(parts(changed))
    assert len(seen) == 8 * raw.shape[1] + 1
