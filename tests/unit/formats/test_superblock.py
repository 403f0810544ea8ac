"""Two levels of scales: where every bit lies, the product's order of roundings, and refusals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ggml_rows import random_rows
from tests.unit.formats.test_matmul_reference import nearest_float32, normal

from thrifty.arrays import Bytes, Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import PackedLinear, SuperblockLinear
from thrifty.kernels.reference import ggml
from thrifty.kernels.reference.activations import quantise_activations
from thrifty.kernels.reference.ggml import TwoLevel
from thrifty.kernels.reference.superblock import TYPES

KINDS = [name.upper() for name in TYPES]
RECORDS = {"q2_k": 1280, "q3_k": 1728, "q4_k": 2240, "q5_k": 2752, "q6_k": 3328, "iq4_xs": 2144}
FILE = {"q2_k": 84, "q3_k": 110, "q4_k": 144, "q5_k": 176, "q6_k": 210, "iq4_xs": 136}


def made(kind: str, rows: int = 20, columns: int = 512, seed: int = 0) -> tuple[SuperblockLinear, TwoLevel, Bytes]:
    raw = random_rows(kind, rows, columns, seed)
    read = ggml.SUPERBLOCK[kind](raw)
    return SuperblockLinear.from_rows(kind.lower(), read), read, raw


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_bytes_as_in_the_file(kind: str) -> None:
    linear, _, raw = made(kind, rows=32)
    name = kind.lower()
    assert linear.layout.record_bytes == RECORDS[name] and linear.label == name
    assert linear.nbytes == raw.nbytes == 32 * 2 * FILE[name]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_files_own(kind: str) -> None:
    linear, _, raw = made(kind, rows=2070)
    expected = ggml.values(kind, raw)
    np.testing.assert_array_equal(linear.dequantize(), expected)
    picked = np.array([2069, 0, 17, 17, 16])
    np.testing.assert_array_equal(linear.rows(picked), expected[picked])
    assert linear.rows(picked[:0]).shape == (0, 512)


@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_gives_every_part_back(kind: str) -> None:
    linear, read, _ = made(kind)
    again = linear.unpacked(0, 20)
    for name in ("codes", "scales", "minimums", "d", "dmin"):
        part = getattr(read, name)
        if part is None:
            assert getattr(again, name) is None
        else:
            np.testing.assert_array_equal(getattr(again, name)[:20], part)
    assert not linear.unpacked(16, 20).d[4:].any()


def code_in(block: Bytes, bits: int, lane: int, column: int) -> int:
    """One code of a block's planes, as the layout's table says it."""
    vector, byte = column // 4, 4 * lane + column % 4
    low = {2: 2, 3: 2, 4: 4, 5: 4, 6: 4}[bits]
    if low == 4:
        code = int(block[64 * (vector % 4) + byte]) >> (4 * (vector // 4)) & 15
    else:
        code = int(block[64 * (vector // 4) + byte]) >> (2 * (vector % 4)) & 3
    high = block[64 * low :]
    if bits - low == 2:
        code |= (int(high[64 * (vector // 4) + byte]) >> (2 * (vector % 4)) & 3) << 4
    elif bits - low == 1:
        code |= (int(high[byte]) >> vector & 1) << low
    return code


def scales_in(kind: str, record: Bytes, lane: int) -> tuple[list[int], list[int]]:
    """Stored scales and minimums of one lane, as the layout's table says it."""
    words = record[: len(record) // 64 * 64].view(np.uint32).reshape(-1, 16)[:, lane].tolist()

    def nibbles(word: int) -> list[int]:
        return [word >> 4 * place & 15 for place in range(8)]

    if kind in ("Q4_K", "Q5_K"):
        high = [words[2] >> 2 * place & 3 for place in range(16)]
        low = nibbles(words[0]) + nibbles(words[1])
        both = [a | b << 4 for a, b in zip(low, high, strict=True)]
        return both[:8], both[8:]
    if kind == "Q6_K":
        return [words[place // 4] >> 8 * (place % 4) & 255 for place in range(16)], []
    if kind == "Q3_K":
        high = [words[2] >> 2 * place & 3 for place in range(16)]
        return [a | b << 4 for a, b in zip(nibbles(words[0]) + nibbles(words[1]), high, strict=True)], []
    if kind == "Q2_K":
        return nibbles(words[0]) + nibbles(words[1]), nibbles(words[2]) + nibbles(words[3])
    pairs = int(record[64 + 2 * lane]) | int(record[65 + 2 * lane]) << 8
    return [a | (pairs >> 2 * place & 3) << 4 for place, a in enumerate(nibbles(words[0]))], []


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_lies_where_the_layout_says(kind: str) -> None:
    linear, read, _ = made(kind)
    layout, bits = linear.layout, linear.layout.bits
    for row, superblock in ((0, 0), (15, 1), (16, 0), (19, 1)):
        tile, lane = divmod(row, 16)
        record = linear.records[tile, superblock]
        scales, minimums = scales_in(kind, record, lane)
        assert [value - layout.bias for value in scales] == [
            value % 256 if kind == "Q6_K" else value for value in read.scales[row, superblock].tolist()
        ]
        assert minimums == ([] if read.minimums is None else read.minimums[row, superblock].tolist())
        assert linear.scales[tile, superblock, lane] == read.d[row, superblock]
        for column in range(256):
            start = layout.scale_bytes + 64 * bits * (column // 32)
            found = code_in(record[start : start + 64 * bits], bits, lane, column % 32)
            assert found == read.codes[row, 256 * superblock + column]


def slow_matmul(kind: str, read: TwoLevel, x: Floats) -> Floats:
    """The contract of the kernels, element by element, with exact fractions for every rounding."""

    def fma(left: float, right: float, addend: float) -> float:
        return nearest_float32(Fraction(left) * Fraction(right) + Fraction(addend))

    quantised, scales_x = quantise_activations(x)
    table = None if read.table is None else read.table.tolist()
    count = read.scales.shape[2]
    each = 256 // count
    result = np.empty((len(x), len(read.codes)), np.float32)
    for row in range(len(x)):
        for out in range(len(read.codes)):
            total = 0.0
            for superblock in range(read.scales.shape[1]):
                s = t = 0.0
                for block in range(8):
                    xs = np.float32(scales_x[row, 8 * superblock + block])
                    dots, sums, own, below = [], [], [], []
                    for part in range(32 // each):
                        first = 256 * superblock + 32 * block + each * part
                        codes = read.codes[out, first : first + each].tolist()
                        w = [table[code] if table else code - read.offset for code in codes]
                        q = quantised[row, 8 * superblock + block, each * part : each * (part + 1)].tolist()
                        dots.append(sum(a * b for a, b in zip(w, q, strict=True)))
                        sums.append(sum(q))
                        place = superblock, (32 // each) * block + part
                        own.append(float(read.scales[out][place]))
                        below.append(0.0 if read.minimums is None else float(read.minimums[out][place]))
                    if len(dots) == 1:
                        s = fma(dots[0], float(np.float32(own[0]) * xs), s)
                    else:
                        f = fma(dots[1], own[1], float(np.float32(dots[0]) * np.float32(own[0])))
                        s = fma(f, float(xs), s)
                    for m, sum_q in zip(below, sums, strict=True) if read.minimums is not None else ():
                        t = fma(m, float(xs * np.float32(sum_q)), t)
                total = fma(float(read.d[out, superblock]), s, total)
                if read.dmin is not None:
                    total = fma(-float(read.dmin[out, superblock]), t, total)
            result[row, out] = total
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_equals_the_slow_loop_to_the_bit(kind: str) -> None:
    linear, read, _ = made(kind, rows=3)
    x = normal(2, 512, seed=1)
    x[1, 32:64] = 0
    assert np.array_equal(linear.oracle(x), slow_matmul(kind, read, x))


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_is_close_to_the_real_product_and_blind_to_neighbours(kind: str) -> None:
    linear, _, _ = made(kind)
    x = normal(9, 512, seed=1)
    found, exact = linear.oracle(x), x @ linear.dequantize().T
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)
    assert np.array_equal(linear.oracle(x[4:5]), found[4:5])


@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_state_round_trip(kind: str, rows: int, superblocks: int, seed: int) -> None:
    linear, _, raw = made(kind, rows, 256 * superblocks, seed)
    bias = normal(rows)
    linear.set_bias(bias)
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert again.label == linear.label and again.bias is linear.bias
    np.testing.assert_array_equal(again.dequantize(), ggml.values(kind, raw))


def test_wrong_state_is_refused_by_name() -> None:
    linear, read, _ = made("Q4_K")
    meta, state = linear.meta(), linear.state()
    for key, value in {"type": "q9_k", "out_features": 0, "in_features": "many"}.items():
        with pytest.raises(CheckpointError, match=key):
            PackedLinear.from_state(meta | {key: value}, state)
    with pytest.raises(CheckpointError, match="'records' is missing"):
        PackedLinear.from_state(meta, {"scales": state["scales"]})
    with pytest.raises(CheckpointError, match="'minimums' is missing"):
        PackedLinear.from_state(meta, {name: state[name] for name in ("records", "scales")})
    with pytest.raises(CheckpointError, match=r"'records' is uint8 .* expected uint8 \(2, 2, 2752\)"):
        PackedLinear.from_state(meta | {"type": "q5_k"}, state)
    with pytest.raises(KernelError, match="q4_k needs columns in superblocks of 256, found 288"):
        SuperblockLinear(16, 288, "q4_k", linear.records, linear.scales, linear.minimums)
    with pytest.raises(KernelError, match="superblock type 'q8_k' does not exist: types are q2_k, q3_k"):
        SuperblockLinear.from_rows("q8_k", read)
    other, _, _ = made("Q6_K")
    with pytest.raises(KernelError, match="q6_k has no minimums: leave them out"):
        SuperblockLinear(20, 512, "q6_k", other.records, other.scales, other.scales)
