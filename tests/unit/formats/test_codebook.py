"""Codes into a table of values: values, rows, bytes and products."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.kernels.native_pages import ISAS, using
from tests.unit.kernels.native_plans import LLAMA, MIXTRAL, compile_plan, decoder, feed, tokens

from thrifty.arrays import Floats
from thrifty.errors import KernelError
from thrifty.formats.linear import CodebookLinear, PackedLinear
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ModelConfig

SHAPES = [(16, 32), (37, 100), (70, 384)]


def made(rows: int, columns: int, bits: int, group: int) -> tuple[CodebookLinear, Floats]:
    """A layer, and its values."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    scales = (0.1 + random.random((rows, -(-columns // group)))).astype(np.float32)
    table = random.standard_normal(1 << bits, np.float32)
    values = table[codes] * scales[:, np.arange(columns) // group]
    return CodebookLinear.from_codes(codes, scales, table, bits, group), values


def rounded(weight: Floats, bits: int, group: int) -> CodebookLinear:
    """A weight [out, in] in a table of evenly spaced values."""
    steps = (1 << bits) - 1
    missing = -weight.shape[1] % group
    grouped = np.pad(weight, ((0, 0), (0, missing))).reshape(len(weight), -1, group)
    scales = np.abs(grouped).max(-1) + np.float32(1e-9)
    codes = np.round((grouped / scales[..., None] + 1) / 2 * steps).reshape(len(weight), -1)[:, : weight.shape[1]]
    table = np.linspace(-1, 1, steps + 1, dtype=np.float32)
    return CodebookLinear.from_codes(codes.astype(np.uint8), scales, table, bits, group)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [32, 64, 512])
@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_exact(bits: int, group: int, shape: tuple[int, int]) -> None:
    linear, exact = made(*shape, bits, group)
    assert np.array_equal(linear.dequantize(), exact)
    indices = np.array([shape[0] - 1, 0, 3])
    assert np.array_equal(linear.rows(indices), exact[indices])
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, CodebookLinear)
    assert np.array_equal(again.dequantize(), exact)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [32, 512])
@pytest.mark.parametrize("bits", [4, 8])
def test_native_products_are_the_oracles_on_every_instruction_set(
    bits: int, group: int, shape: tuple[int, int]
) -> None:
    linear, exact = made(*shape, bits, group)
    x = np.random.default_rng(1).standard_normal((13, shape[1]), np.float32)
    products = []
    for isa in ISAS:
        module = dispatch.native()
        if module is None or not module.isa_available(isa):
            continue
        with using(isa):
            products.append(dispatch.matmul(linear, x))
            for rows in (1, 2, 5, 9):
                assert np.array_equal(dispatch.matmul(linear, x[:rows]), products[-1][:rows])
    if not products:
        pytest.skip("the native kernels are not built")
    oracle = linear.oracle(x)
    assert all(np.array_equal(product, oracle) for product in products)
    np.testing.assert_allclose(products[0], x.astype(np.float64) @ exact.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("config", [LLAMA, dataclasses.replace(MIXTRAL, mlp_bias=False)], ids=lambda one: one.family)
@torch.no_grad()
def test_a_plan_of_tables_is_the_decoder(config: ModelConfig, bits: int) -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model, ids = decoder(config, 32), tokens(40)
    for name, linear in list(model.model.linears.items()):
        table = rounded(linear.dequantize(), bits, 96)
        if linear.bias is not None:
            table.set_bias(linear.bias)
        model.replace(name, table)
    logits = feed(compile_plan(model, 32), config, ids, [20, 1, 1, 18], "f32")
    wanted = model(ids.long(), torch.arange(40), GrowingCache(config), 40)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_named() -> None:
    codes, scales = np.zeros((16, 32), np.uint8), np.ones((16, 1), np.float32)
    with pytest.raises(KernelError, match="a codebook of 4 bits in groups of 48: bits are 4 or 8, groups multiples"):
        CodebookLinear.from_codes(codes, scales, np.zeros(16, np.float32), 4, 48)
    with pytest.raises(KernelError, match="a code is 16; 0 to 15 is allowed"):
        CodebookLinear.from_codes(codes + np.uint8(16), scales, np.zeros(16, np.float32), 4, 32)
    with pytest.raises(KernelError, match=r"tensor 'table' is float32 \(15,\), expected float32 \(16,\)"):
        CodebookLinear.from_codes(codes, scales, np.zeros(15, np.float32), 4, 32)
