"""A base with a product of low rank: values, bytes, products alone, in batches and in plans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.kernels.native_pages import ISAS, using
from tests.unit.kernels.native_plans import LLAMA, MIXTRAL, compile_plan, decoder, feed, tokens, with_oracles

from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import DenseLinear, GroupLinear, LowRankLinear, PackedLinear
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ModelConfig

SHAPES = [(16, 32, 1), (37, 100, 5), (70, 384, 40)]
FORMATS = ("int8", "int4", "bf16", "f32")


def stored(weight: Floats, kind: str) -> PackedLinear:
    """A weight in a format."""
    if kind == "f32":
        return DenseLinear.from_weight(weight)
    if kind == "bf16":
        return DenseLinear.from_weight(weight, BFLOAT16, packed=True)
    return GroupLinear.quantize(weight, int(kind.removeprefix("int")), 32)


def made(rows: int, columns: int, rank: int, base: str = "int4", factor: str = "int8", seed: int = 0) -> LowRankLinear:
    random = np.random.default_rng(seed)
    weight, up, down = (
        random.standard_normal(shape, np.float32) for shape in ((rows, columns), (rows, rank), (rank, columns))
    )
    return LowRankLinear(stored(weight, base), stored(down, factor), stored(up * np.float32(0.3), factor))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_its_base_and_the_product(shape: tuple[int, int, int]) -> None:
    linear = made(*shape)
    exact = linear.base.dequantize() + linear.up.dequantize() @ linear.down.dequantize()
    np.testing.assert_allclose(linear.dequantize(), exact, rtol=1e-5, atol=1e-5)
    indices = np.array([shape[0] - 1, 0, 3])
    np.testing.assert_allclose(linear.rows(indices), exact[indices], rtol=1e-5, atol=1e-5)
    assert linear.nbytes == linear.base.nbytes + linear.up.nbytes + linear.down.nbytes
    assert linear.label == f"int4-g32+r{shape[2]}-int8-g32"
    bias = np.arange(shape[0], dtype=np.float32)
    linear.set_bias(bias)
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, LowRankLinear) and np.array_equal(again.dequantize(), linear.dequantize())
    assert again.bias is not None and np.array_equal(again.bias, bias) and again.nbytes == linear.nbytes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("base", "factor"), [("int4", "int8"), ("int4", "bf16"), ("bf16", "int4"), ("f32", "int8")])
def test_native_products_are_the_oracles(base: str, factor: str, shape: tuple[int, int, int]) -> None:
    linear = made(*shape, base, factor)
    module = dispatch.native()
    if module is None:
        pytest.skip("the native kernels are not built")
    x = np.random.default_rng(1).standard_normal((21, shape[1]), np.float32)
    oracle = linear.oracle(x)
    for isa in ISAS:
        if not module.isa_available(isa):
            continue
        with using(isa):
            product = dispatch.matmul(linear, x)
            for rows in (1, 2, 5, 9):
                assert np.array_equal(dispatch.matmul(linear, x[:rows]), product[:rows])
        # Codes of V·x may fall to the neighbour where sums of other instruction sets end in other bits.
        np.testing.assert_allclose(product, oracle, rtol=1e-3, atol=2e-2)
    close = x.astype(np.float64) @ linear.dequantize().T
    assert np.abs(oracle - close).mean() < 0.03 * np.abs(close).mean()
    rows = np.empty((2, shape[1]), np.float32)
    module.linear_rows(dispatch.packed(linear), np.array([shape[0] - 1, 0]), rows)
    np.testing.assert_allclose(rows, linear.dequantize()[[shape[0] - 1, 0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=lambda one: one.family)
@torch.no_grad()
def test_a_plan_is_the_decoder_and_rows_do_not_depend_on_their_batch(config: ModelConfig) -> None:
    """Ranks and formats differ from linear to linear; some have no product."""
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model, ids = decoder(config, 32), tokens(40)
    for seed, (name, linear) in enumerate(list(model.model.linears.items())):
        if name in ("embedding", "head") or name.endswith("router") or seed % 5 == 0:
            continue
        rank, base, factor = 1 + 17 * (seed % 3), FORMATS[seed % 3], FORMATS[seed % 4]
        sizes = (linear.out_features, linear.in_features)
        random = np.random.default_rng(seed)
        up = random.standard_normal((sizes[0], rank), np.float32) * np.float32(0.05)
        down = random.standard_normal((rank, sizes[1]), np.float32) * np.float32(0.3)
        low = LowRankLinear(stored(linear.dequantize(), base), stored(down, factor), stored(up, factor), linear.bias)
        model.replace(name, low)
    logits = feed(compile_plan(model, 32), config, ids, [20, 1, 1, 18], "f32")
    for _, module in with_oracles(model).decoder.linears():
        if isinstance(module.stored, LowRankLinear):
            module.product = module.stored.oracle
    wanted = model(ids.long(), torch.arange(40), GrowingCache(config), 40)
    # Some codes of activations fall to the neighbour, since attention adds up in another order.
    assert float((logits - wanted).abs().mean()) < 0.005 * float(wanted.abs().mean())
    assert torch.equal(logits, feed(compile_plan(model, 32), config, ids, [20, 2, 3, 15], "f32"))
    assert torch.equal(logits, feed(compile_plan(model, 32), config, ids, [1] * 40, "f32"))


def test_parts_that_do_not_fit_are_named() -> None:
    base, wide, tall = (stored(np.zeros(shape, np.float32), "int8") for shape in ((16, 32), (3, 32), (16, 3)))
    with pytest.raises(KernelError, match=r"up \[16, 3\] times down \[16, 32\] does not fit a base \[16, 32\]"):
        LowRankLinear(base, base, tall)
    biased = stored(np.zeros((3, 32), np.float32), "int8")
    biased.set_bias(np.zeros(3))
    with pytest.raises(KernelError, match="the down of a linear of low rank has neither a bias"):
        LowRankLinear(base, biased, tall)
    linear = LowRankLinear(base, wide, tall)
    with pytest.raises(KernelError, match="the base of a linear of low rank has neither a bias nor a low rank"):
        LowRankLinear(linear, wide, tall)
    with pytest.raises(CheckpointError, match="linear field 'up' must be a table"):
        PackedLinear.from_state({**linear.meta(), "up": 3}, linear.state())
    with pytest.raises(CheckpointError, match="linear field 'base' must be a table"):
        PackedLinear.from_state({**linear.meta(), "base": linear.meta()}, linear.state())
    if dispatch.native() is not None:
        with pytest.raises(KernelError, match="up is None, expected a Linear"):
            layout, arrays = linear.native() or ("", {})
            sizes = {"out_features": 16, "in_features": 32}
            dispatch._call(dispatch.require().Linear, layout=layout, **{**arrays, "up": None}, **sizes)
