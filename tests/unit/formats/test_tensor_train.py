"""Trains of tensors: values, bytes, products alone, in batches and in plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.formats.test_low_rank import stored
from tests.unit.kernels.native_pages import ISAS, using
from tests.unit.kernels.native_plans import LLAMA, MIXTRAL, compile_plan, decoder, feed, tokens, with_oracles

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import LowRankLinear, PackedLinear, TensorTrainLinear
from thrifty.kernels import dispatch
from thrifty.weights.tensor_trains import Shape

SHAPES = [((1, 37), (5, 4), (6,)), ((4, 16), (12, 8), (9,)), ((2, 3, 16), (5, 2, 4), (7, 11))]


def made(rows: tuple[int, ...], columns: tuple[int, ...], bonds: tuple[int, ...], kind: str) -> TensorTrainLinear:
    random, sites, all_bonds = np.random.default_rng(0), [], (1, *bonds, 1)
    for site, (outs, ins) in enumerate(zip(rows, columns, strict=True)):
        shape = (outs * all_bonds[site + 1], ins * all_bonds[site])
        sites.append(stored(random.standard_normal(shape, np.float32) / np.float32(shape[1] ** 0.5), kind))
    return TensorTrainLinear(sites, rows, columns)


def element(linear: TensorTrainLinear, row: int, column: int) -> float:
    """One number of W: a product of matrices of bonds (the paper's equation of a matrix product operator)."""
    outs, ins = [], []
    for o, i in zip(reversed(linear.row_sizes), reversed(linear.column_sizes), strict=True):
        outs.append(row % o), ins.append(column % i)
        row, column = row // o, column // i
    chain = np.ones((1, 1))
    for site, (o, i) in enumerate(zip(reversed(outs), reversed(ins), strict=True)):
        before, behind = linear.bonds[site], linear.bonds[site + 1]
        weights = linear.sites[site].dequantize().astype(np.float64)
        chain = chain @ weights[o * behind : (o + 1) * behind, i * before : (i + 1) * before].T
    return float(chain[0, 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_values_bytes_and_files(shape: Any) -> None:
    linear = made(*shape, "f32")
    wanted = np.array([
        [element(linear, row, column) for column in range(linear.in_features)] for row in range(linear.out_features)
    ])  # fmt: skip
    np.testing.assert_allclose(linear.dequantize(), wanted, rtol=1e-5, atol=1e-6)
    assert linear.parameters == sum(site.out_features * site.in_features for site in linear.sites)
    assert linear.nbytes == 4 * linear.parameters
    bias = np.arange(linear.out_features, dtype=np.float32)
    linear.set_bias(bias)
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, TensorTrainLinear) and np.array_equal(again.dequantize(), linear.dequantize())
    assert again.bias is not None and np.array_equal(again.bias, bias) and again.nbytes == linear.nbytes
    assert again.label == f"mpo-x{'x'.join(map(str, shape[2]))}-f32"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["bf16", "int8", "int4", "f32"])
def test_native_products_are_the_oracles(kind: str, shape: Any) -> None:
    linear = made(*shape, kind)
    module = dispatch.native()
    if module is None:
        pytest.skip("the native kernels are not built")
    x = np.random.default_rng(1).standard_normal((21, linear.in_features), np.float32)
    oracle = linear.oracle(x)
    for isa in ISAS:
        if not module.isa_available(isa):
            continue
        with using(isa):
            made_now = dispatch.matmul(linear, x)
            for rows in (1, 2, 5, 9):
                assert np.array_equal(dispatch.matmul(linear, x[:rows]), made_now[:rows])
        # States between sites may fall to the neighbour where sums of other instruction sets end in other bits.
        np.testing.assert_allclose(made_now, oracle, rtol=2e-3, atol=0.01 * np.abs(oracle).max())
    close = x.astype(np.float64) @ linear.dequantize().T
    assert np.abs(oracle - close).mean() < 0.03 * np.abs(close).mean()
    rows = np.empty((2, linear.in_features), np.float32)
    module.linear_rows(dispatch.packed(linear), np.array([linear.out_features - 1, 0]), rows)
    np.testing.assert_allclose(rows, linear.dequantize()[[linear.out_features - 1, 0]], rtol=1e-5, atol=1e-6)


def test_a_bias_is_added_once() -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    linear = made(*SHAPES[1], "bf16")
    x = np.random.default_rng(1).standard_normal((3, linear.in_features), np.float32)
    plain = linear.multiply(x)
    bias = np.arange(linear.out_features, dtype=np.float32)
    linear.set_bias(bias)
    np.testing.assert_allclose(linear.multiply(x), plain + bias, rtol=1e-6)


def train(linear: PackedLinear, sites: int, kind: str, bias: Floats | None) -> TensorTrainLinear:
    """A random train of a linear's sizes."""
    shape = Shape.of(linear.out_features, linear.in_features, sites, 4)
    bonds = (1, *[5 + site for site in range(sites - 1)], 1)
    random, made_sites = np.random.default_rng(linear.out_features), []
    for site, (outs, ins) in enumerate(zip(shape.rows, shape.columns, strict=True)):
        own = random.standard_normal((outs * bonds[site + 1], ins * bonds[site]), np.float32)
        made_sites.append(stored(own * np.float32(0.3), kind))
    return TensorTrainLinear(made_sites, shape.rows, shape.columns, bias)


@torch.no_grad()
def test_a_plan_is_the_decoder_and_rows_do_not_depend_on_their_batch() -> None:
    """Sites and formats differ from linear to linear; some are no trains."""
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model, ids = decoder(LLAMA, 32), tokens(40)
    for seed, (name, linear) in enumerate(list(model.model.linears.items())):
        if name != "embedding" and seed % 5:
            kind = ("bf16", "int8", "f32")[seed % 3]
            model.replace(name, train(linear, 2 + seed % 2, kind, linear.bias))
    logits = feed(compile_plan(model, 32), LLAMA, ids, [20, 1, 1, 18], "f32")
    for _, module in with_oracles(model).decoder.linears():
        if isinstance(module.stored, TensorTrainLinear):
            module.product = module.stored.oracle
    wanted = model(ids.long(), torch.arange(40), GrowingCache(LLAMA), 40)
    assert float((logits - wanted).abs().mean()) < 0.005 * float(wanted.abs().mean())
    assert torch.equal(logits, feed(compile_plan(model, 32), LLAMA, ids, [20, 2, 3, 15], "f32"))
    assert torch.equal(logits, feed(compile_plan(model, 32), LLAMA, ids, [1] * 40, "f32"))


def test_a_plan_refuses_experts_and_embeddings_that_are_trains() -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    for config, name in ((MIXTRAL, "layers.0.mlp.experts.up.1"), (LLAMA, "embedding")):
        model = decoder(config, 32)
        linear = model.model.linears[name]
        model.replace(name, train(linear, 2, "bf16", None))
        with pytest.raises(KernelError, match="cannot be (a train|trains) of tensors"):
            compile_plan(model, 8)


def test_sites_that_do_not_fit_are_named() -> None:
    first, last = (stored(np.zeros(shape, np.float32), "bf16") for shape in ((2 * 5, 8), (16, 4 * 5)))
    TensorTrainLinear([first, last], (2, 16), (8, 4))
    with pytest.raises(KernelError, match=r"site 2 \[16, 20\] does not fit 16 rows, and 3 columns times a bond of 5"):
        TensorTrainLinear([first, last], (2, 16), (8, 3))
    with pytest.raises(KernelError, match="a bond of 1 behind it, not 2"):
        TensorTrainLinear([first, last], (2, 8), (8, 4))
    with pytest.raises(KernelError, match="2 to 4 sites"):
        TensorTrainLinear([first], (2,), (8,))
    short = stored(np.zeros((8, 20), np.float32), "bf16")
    with pytest.raises(KernelError, match="the last site gives 8 rows; it must give all, or a multiple of 16"):
        TensorTrainLinear([first, short], (2, 8), (8, 4))
    low = LowRankLinear(*(stored(np.zeros(shape, np.float32), "int8") for shape in ((10, 8), (3, 8), (10, 3))))
    with pytest.raises(KernelError, match="neither a bias, nor a low rank, nor sites"):
        TensorTrainLinear([low, last], (2, 16), (8, 4))


@pytest.mark.parametrize(("change", "told"), [
    ({"rows": [2, 0]}, "linear field 'rows' is 0"), ({"rows": [2]}, "'rows' must be a list of 2 to 4"),
    ({"columns": "84"}, "'columns' must be a list"), ({"sites": 3}, "'sites' must be a list of 2 to 4 tables"),
    ({"sites": [1, 2]}, "no table that describes a plain linear at place 1"),
    ({"out_features": 64}, "those of a linear"),
    ({"rows": [2**30, 2**30]}, "site 1"),
])  # fmt: skip
def test_hostile_files_are_refused(change: dict[str, Any], told: str) -> None:
    linear = made((2, 16), (8, 4), (5,), "bf16")
    with pytest.raises(CheckpointError, match=told):
        PackedLinear.from_state(linear.meta() | change, linear.state())


def test_native_code_checks_sites_itself() -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    linear, other = made((4, 16), (12, 8), (9,), "bf16"), made((4, 16), (12, 8), (7,), "bf16")
    layout, arrays = linear.native() or ("", {})
    one, two = arrays["sites"]
    sizes: dict[str, Any] = {"layout": layout, "codes": None, "out_features": 64, "in_features": 96}

    def refused(told: str, **options: Any) -> None:
        with pytest.raises(KernelError, match=told):
            dispatch._call(dispatch.require().Linear, **(sizes | options))

    refused("site 2 .* does not fit", sites=(one, (other.native() or ("", {}))[1]["sites"][1]))
    refused("2 to 4 sites, not 1", sites=(one,))
    refused("not of one \\[32, 96\\]", sites=(one, two), out_features=32)
    refused("its layout is f32, not bf16", sites=(one, two), layout="bf16")
    refused("sites and a bias alone", sites=(one, two), codes=np.zeros((64, 96), np.float32))
    refused("does not fit", sites=((one[0], 0, 12), two))
