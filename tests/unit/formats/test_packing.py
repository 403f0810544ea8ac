"""The byte layouts, against loops that spell out where every element goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.arrays import Bytes
from thrifty.errors import KernelError
from thrifty.kernels.reference import packing


def random_codes(rows: int, columns: int, bits: int) -> Bytes:
    return np.random.default_rng(rows * columns + bits).integers(0, 1 << bits, (rows, columns), np.uint8)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_lie_where_the_layout_says(bits: int) -> None:
    codes = random_codes(32, 64, bits)
    tiles = packing.pack_codes(codes, bits)
    assert tiles.shape == (2, 2, 64 * bits)
    for row in range(32):
        for column in range(64):
            block = tiles[row // 16, column // 32]
            inside = column % 32
            if bits == 8:
                found = int(block[64 * (inside // 4) + 4 * (row % 16) + inside % 4])
            else:
                half, within = divmod(inside, 16)
                byte = int(block[64 * (within // 4) + 4 * (row % 16) + within % 4])
                found = byte >> 4 if half else byte & 15
            assert found == int(codes[row, column])


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 3, 4, 5, 6, 8]))
@settings(max_examples=25, deadline=None)
def test_codes_round_trip(tiles: int, blocks: int, bits: int) -> None:
    codes = random_codes(16 * tiles, 32 * blocks, bits)
    packed = packing.pack_codes(codes, bits)
    assert np.array_equal(packing.unpack_codes(packed, bits), codes)
    rows = np.random.default_rng(tiles).integers(0, 16 * tiles, 7)
    assert np.array_equal(packing.unpack_code_rows(packed, bits, rows), codes[rows])


def test_the_codes_of_five_bits_are_two_planes() -> None:
    codes = random_codes(16, 64, 5)
    tiles = packing.pack_codes(codes, 5)
    assert tiles.shape == (1, 2, 320)
    np.testing.assert_array_equal(tiles[:, :, :256], packing.pack_codes(codes & 15, 4))
    for row, column in ((0, 0), (15, 31), (3, 40), (7, 63)):
        vector, byte = column % 32 // 4, 4 * row + column % 4
        assert int(tiles[0, column // 32, 256 + byte]) >> vector & 1 == int(codes[row, column]) >> 4


def test_no_rows_of_codes() -> None:
    tiles = packing.pack_codes(random_codes(16, 32, 5), 5)
    assert packing.unpack_code_rows(tiles, 5, np.zeros(0, np.int64)).shape == (0, 32)


def test_unpadded_codes_are_refused() -> None:
    with pytest.raises(KernelError, match="tiles of 16x32"):
        packing.pack_codes(random_codes(15, 32, 4), 4)


def test_parameters_and_pairs_lie_where_the_layout_says() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((32, 5), np.float32)
    tiles = packing.pack_parameters(values)
    assert tiles[1, 3, 7] == values[16 + 7, 3]
    assert np.array_equal(packing.unpack_parameters(tiles), values)
    weight = random.standard_normal((32, 6), np.float32)
    pairs = packing.pack_pairs(weight)
    assert pairs.shape == (2, 3, 16, 2)
    assert pairs[1, 2, 5, 1] == weight[16 + 5, 5]
    assert np.array_equal(packing.unpack_pairs(pairs), weight)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pack_lanes_holds_codes_where_the_layout_says(bits: int) -> None:
    rows, lanes, group = 64, 48, 32 // bits
    codes = random_codes(3 * rows, lanes, bits).reshape(3, rows, lanes)
    packed = packing.pack_lanes(codes, bits)
    assert packed.shape == (3, rows * lanes * bits // 8)
    words = packed.view(np.uint16).reshape(3, rows // group, lanes // 16, 16, 2)
    for row, lane in [(0, 0), (1, 15), (2, 16), (group - 1, 47), (group, 31), (63, 40), (37, 5)]:
        place, half = row % group // 2, row % 2
        word = words[:, row // group, lane // 16, lane % 16, half]
        assert np.array_equal((word >> (bits * place)) & ((1 << bits) - 1), codes[:, row, lane])
    assert np.array_equal(packing.unpack_lanes(packed, bits, lanes), codes)
