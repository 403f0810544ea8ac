"""Two weights in the same words: their values, bytes and products."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.kernels.native_pages import ISAS, using
from tests.unit.kernels.native_plans import MIXTRAL, compile_plan, decoder, feed, tokens

from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import PackedLinear, PairedLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference import paired

SHAPES = [(16, 32), (37, 101), (70, 384)]


def made(rows: int, columns: int, seed: int = 0) -> tuple[tuple[PairedLinear, PairedLinear], tuple[Floats, Floats]]:
    """A pair, and the values of each."""
    random = np.random.default_rng(seed)
    magnitude = np.abs(random.standard_normal((rows, columns), np.float32)) * np.float32(0.1)
    signs = tuple(random.random((rows, columns)) < 0.5 for _ in range(2))
    has = tuple(random.random((rows, columns)) < 0.7 for _ in range(2))
    kept = np.where(magnitude < 2.0**-16, 0, np.maximum(magnitude, 2.0**-15)).astype(BFLOAT16).astype(np.float32)
    values = tuple(
        np.where(own, np.where(sign, -kept, kept), 0).astype(np.float32) for sign, own in zip(signs, has, strict=True)
    )
    return PairedLinear.pair(magnitude, (signs[0], signs[1]), (has[0], has[1])), (values[0], values[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_exact(shape: tuple[int, int]) -> None:
    linears, values = made(*shape)
    for linear, exact in zip(linears, values, strict=True):
        assert np.array_equal(linear.dequantize(), exact)
        indices = np.array([shape[0] - 1, 0, 3])
        assert np.array_equal(linear.rows(indices), exact[indices])
        again = PackedLinear.from_state(linear.meta(), linear.state())
        assert isinstance(again, PairedLinear) and np.array_equal(again.dequantize(), exact)


def test_a_word_is_taken_apart_bit_by_bit() -> None:
    """Every word, against the layout written out."""
    words = np.arange(1 << 16, dtype=np.uint16)
    for member in (0, 1):
        found = paired.split(words, member).astype(np.float64)
        for word in (*range(0, 1 << 16, 97), 0xFFFF, 0xA000, 0x5FFF, 0x1000, 0x2000):
            has, negative = word >> (13 - member) & 1, word >> (15 - member) & 1
            value = 2.0 ** ((word >> 7 & 31) + 112 - 127) * (1 + (word & 127) / 128)
            assert found[word] == (0.0 if not has else -value if negative else value), hex(word)


def test_two_members_take_the_bytes_of_one_in_bf16() -> None:
    (first, second), _ = made(64, 128)
    assert first.words is second.words
    assert first.nbytes + second.nbytes == 64 * 128 * 2
    assert 8 * first.nbytes / (64 * 128) == 8


def test_small_magnitudes_go_to_the_nearest_value() -> None:
    magnitude = np.array([[0.0, 2.0**-17, 2.0**-16, 1.4 * 2.0**-16, 2.0**-15]], np.float32)
    true, false = np.ones_like(magnitude, bool), np.zeros_like(magnitude, bool)
    first, _ = PairedLinear.pair(magnitude, (false, false), (true, true))
    assert first.dequantize().tolist() == [[0.0, 0.0, 2.0**-15, 2.0**-15, 2.0**-15]]


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0**17])
def test_a_magnitude_that_no_word_holds_is_named(value: float) -> None:
    magnitude, flags = np.full((2, 2), value, np.float32), np.ones((2, 2), bool)
    with pytest.raises(
        KernelError, match="magnitude is .*; words that two weights share hold finite ones below 131072"
    ):
        PairedLinear.pair(magnitude, (flags, flags), (flags, flags))


def test_metadata_of_no_member_is_refused() -> None:
    (linear, _), _ = made(16, 32)
    with pytest.raises(CheckpointError, match="'member' is 2"):
        PackedLinear.from_state(linear.meta() | {"member": 2}, linear.state())
    with pytest.raises(CheckpointError, match="tensor 'words' is missing"):
        PackedLinear.from_state(linear.meta(), {})


@pytest.mark.parametrize("shape", SHAPES)
def test_native_products_are_the_oracles_on_every_instruction_set(shape: tuple[int, int]) -> None:
    linears, values = made(*shape)
    module = dispatch.native()
    if module is None:
        pytest.skip("the native kernels are not built")
    x = np.random.default_rng(1).standard_normal((21, shape[1]), np.float32)
    for linear, exact in zip(linears, values, strict=True):
        oracle = linear.oracle(x)
        for isa in ISAS:
            if not module.isa_available(isa):
                continue
            with using(isa):
                product = dispatch.matmul(linear, x)
                for rows in (1, 2, 5, 9):
                    assert np.array_equal(dispatch.matmul(linear, x[:rows]), product[:rows])
            np.testing.assert_allclose(product, oracle, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(oracle, x.astype(np.float64) @ exact.T, rtol=0.05, atol=0.05)
        rows = np.empty((3, shape[1]), np.float32)
        module.linear_rows(dispatch.packed(linear), np.array([shape[0] - 1, 0, 7]), rows)
        assert np.array_equal(rows, exact[[shape[0] - 1, 0, 7]])


@torch.no_grad()
def test_a_plan_of_paired_experts_is_the_decoder() -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model, ids = decoder(MIXTRAL, 32), tokens(40)
    experts = [name for name in model.model.linears if ".experts." in name and name.endswith((".0", ".2"))]
    for seed, name in enumerate(experts):
        path, _, number = name.rpartition(".")
        linear = model.model.linears[name]
        for member, one in enumerate(made(linear.out_features, linear.in_features, seed)[0]):
            model.replace(f"{path}.{int(number) + member}", one)
    logits = feed(compile_plan(model, 32), MIXTRAL, ids, [20, 1, 1, 18], "f32")
    wanted = model(ids.long(), torch.arange(40), GrowingCache(MIXTRAL), 40)
    assert float((logits - wanted).abs().mean()) < 0.02 * float(wanted.abs().mean())
