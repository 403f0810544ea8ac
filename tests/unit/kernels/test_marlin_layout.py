"""MARLIN's order of weights against its published permutation, written out one code at a time."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.errors import KernelError
from thrifty.kernels.reference import marlin

RANDOM = np.random.default_rng(3)


def permutation() -> list[int]:
    """Place of each of 1024 codes of four tiles, tile by tile, in the order in which they are stored: the fragments of
    32 threads of an m16n8k16 product, eight codes of each tile a thread, interleaved (§3.4 of the paper).
    """
    order = []
    for thread in range(32):
        for tile in range(4):
            eight = [
                256 * tile + 16 * row + thread // 4 + 8 * half
                for half in (0, 1)
                for row in (2 * (thread % 4), 2 * (thread % 4) + 1, 2 * (thread % 4) + 8, 2 * (thread % 4) + 9)
            ]
            order += [eight[place] for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    return order


def test_words_and_scales_lie_as_published() -> None:
    rows, columns = 256, 256
    codes = RANDOM.integers(0, 16, (rows, columns), np.uint8)
    scales = RANDOM.standard_normal((rows, 2)).astype(np.float16)
    words, ordered = marlin.pack(codes, scales)
    assert words.shape == (16, 512) and words.dtype == np.int32
    order = permutation()
    for tile in range(columns // 16):
        for chunk in range(rows // 64):
            flat = [
                int(codes[64 * chunk + 16 * n_tile + n, 16 * tile + k])
                for n_tile in range(4)
                for k in range(16)
                for n in range(16)
            ]
            for word in range(128):
                expected = sum(flat[order[8 * word + nibble]] << 4 * nibble for nibble in range(8))
                assert int(words.view(np.uint32)[tile, 128 * chunk + word]) == expected
    for place in range(rows):
        inside = place % 64
        source = place // 64 * 64 + inside // 8 + inside % 8 * 8
        assert np.array_equal(ordered[:, place], scales[source])


def test_unpacking_is_the_inverse_and_the_product_is_that_of_the_weights() -> None:
    codes = RANDOM.integers(0, 16, (512, 384), np.uint8)
    scales = RANDOM.standard_normal((512, 3)).astype(np.float16)
    packed = marlin.pack(codes, scales)
    back, steps = marlin.unpack(*packed)
    assert np.array_equal(back, codes) and np.array_equal(steps, scales)
    x = RANDOM.standard_normal((3, 384)).astype(np.float16)
    weight = (codes.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), 128, axis=1)
    np.testing.assert_allclose(marlin.matmul(x, *packed), x.astype(np.float64) @ weight.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(256, 64), (128, 128), (0, 128), (300, 128)])
def test_sizes_that_marlin_does_not_have_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(KernelError, match="multiple of 256 rows and of 128 columns"):
        marlin.pack(np.zeros(shape, np.uint8), np.zeros((shape[0], 1), np.float16))


def test_wrong_scales_and_codes_are_refused() -> None:
    codes = np.zeros((256, 128), np.uint8)
    with pytest.raises(KernelError, match=r"scales are float16 \(256, 2\)"):
        marlin.pack(codes, np.zeros((256, 2), np.float16))
    codes[0, 0] = 16
    with pytest.raises(KernelError, match="up to 16"):
        marlin.pack(codes, np.zeros((256, 1), np.float16))
