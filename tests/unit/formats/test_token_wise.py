"""Codes for activations with one scale a row: values, rows, bytes and products, outliers apart or not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.kernels.native_pages import EXACT, ISAS, using
from tests.unit.kernels.native_plans import LLAMA, QWEN2_MOE, Made, compile_plan, decoder, feed, tokens

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import DenseLinear, PackedLinear, TokenWiseLinear
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ModelConfig
from thrifty.weights.techniques.zeroquant import group_wise

SHAPES = [(16, 32), (37, 100), (70, 384)]
ROWS = (1, 2, 3, 5, 9, 13)


def made(
    rows: int, columns: int, bits: int, group: int | None = None, threshold: float | None = None
) -> TokenWiseLinear:
    weight = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    return stored(DenseLinear.from_weight(weight), bits, group, threshold)


def stored(linear: PackedLinear, bits: int, group: int | None, threshold: float | None) -> TokenWiseLinear:
    return TokenWiseLinear.rounded(linear, lambda rows: group_wise(rows, bits, group), bits, group, threshold)


def activations(rows: int, columns: int) -> Floats:
    """Rows of which some have features that stand out, one of them none and one nothing else."""
    x = np.random.default_rng(1).standard_normal((rows, columns), np.float32)
    x[:, 3::17] *= np.float32(9)
    x[2] = np.clip(x[2], -2, 2)
    x[3] = 20 + np.arange(columns)
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_exact(bits: int, group: int | None, shape: tuple[int, int]) -> None:
    linear = made(*shape, bits, group)
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    codes, scales = group_wise(weight, bits, group)
    exact = np.array(
        [
            [float(code) * float(scales[row, column // linear.group]) for column, code in enumerate(codes[row])]
            for row in range(shape[0])
        ]
    )
    assert np.array_equal(linear.dequantize(), exact)
    indices = np.array([shape[0] - 1, 0, 3])
    assert np.array_equal(linear.rows(indices), exact[indices])
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, TokenWiseLinear) and np.array_equal(again.dequantize(), exact)
    padded = -(-shape[0] // 16) * 16, -(-shape[1] // 32) * 32
    assert linear.nbytes == padded[0] * padded[1] * bits // 8 + padded[0] * 2 * scales.shape[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "group", "threshold"), [(4, None, None), (4, 64, None), (8, None, None),
                                                          (8, None, 6.0), (8, 32, 6.0)])  # fmt: skip
@pytest.mark.parametrize("isa", ISAS)
def test_native_products_are_those_of_the_oracle(
    isa: str, bits: int, group: int | None, threshold: float | None, shape: tuple[int, int]
) -> None:
    linear, x = made(*shape, bits, group, threshold), activations(13, shape[1])
    with using(isa):
        y = dispatch.matmul(linear, x)
        for rows in ROWS:
            assert np.array_equal(dispatch.matmul(linear, x[:rows]), y[:rows])
        assert np.array_equal(dispatch.matmul(linear, x[::-1].copy()), y[::-1])
    wanted = linear.oracle(x)
    if isa in EXACT:
        assert np.array_equal(y, wanted)
    else:
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    exact = x.astype(np.float64) @ linear.dequantize().T
    assert np.abs(y - exact).mean() < 0.02 * np.abs(exact).mean()


def test_outliers_that_are_apart_are_exact_and_leave_the_others_their_steps() -> None:
    """The product with its definition: what is beyond the threshold in fp32, the rest in steps of its own maximum."""
    x = activations(6, 100)
    plain, apart = (made(37, 100, 8, None, threshold).oracle(x) for threshold in (None, 6.0))
    weight = made(37, 100, 8).dequantize().astype(np.float64)
    for row in range(6):
        beyond = np.abs(x[row]) >= 6
        step = max(abs(float(value)) for value in np.where(beyond, 0, x[row])) / 127 or 1.0
        rest = np.array(
            [0.0 if out else step * np.rint(value / step) for value, out in zip(x[row], beyond, strict=True)]
        )
        expected = weight @ (rest + np.where(beyond, x[row], 0).astype(np.float64))
        np.testing.assert_allclose(apart[row], expected, rtol=1e-4, atol=1e-3)
    exact = x.astype(np.float64) @ weight.T
    assert np.abs(apart - exact).mean() < 0.5 * np.abs(plain - exact).mean()


@pytest.mark.parametrize("threshold", [None, 2.0])
@pytest.mark.parametrize("config", [LLAMA, dataclasses.replace(QWEN2_MOE, layers=QWEN2_MOE.layers[1:])],
                         ids=lambda one: one.family)  # fmt: skip
@torch.no_grad()
def test_a_plan_is_the_decoder_with_the_oracles(config: ModelConfig, threshold: float | None) -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model, ids = decoder(config, 32), tokens(40)
    replaced = dict(model.model.linears)
    for name, linear in replaced.items():
        if name != "embedding" and not name.endswith(("router", "shared_gate")):
            model.replace(name, stored(linear, 8, None, threshold))
    logits = feed(compile_plan(model, 32), config, ids, [20, 1, 1, 18], "f32")
    alone = feed(compile_plan(model, 32), config, ids, [1] * 40, "f32")
    assert torch.equal(logits, alone), "a row is the same alone and in a chunk"
    wanted = with_all_oracles(model)(ids.long(), torch.arange(40), GrowingCache(config), 40)
    torch.testing.assert_close(logits, wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


def with_all_oracles(model: Made) -> Made:
    for _, linear in model.decoder.linears():
        linear.product = getattr(linear.stored, "oracle", None)
    return model


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(KernelError, match="8-bit codes for token-wise activations in groups of 48: bits are 4 or 8"):
        made(16, 96, 8, 48)
    with pytest.raises(KernelError, match="a threshold of 6.0 for outliers of 4-bit codes"):
        made(16, 32, 4, None, 6.0)
    with pytest.raises(KernelError, match="a threshold of -1.0 for outliers of 8-bit codes"):
        made(16, 32, 8, None, -1.0)
    linear = made(16, 32, 8, None, 6.0)
    with pytest.raises(CheckpointError, match="linear field 'threshold' is '6'; expected a number above 0, or null"):
        PackedLinear.from_state(linear.meta() | {"threshold": "6"}, linear.state())
    with pytest.raises(
        CheckpointError, match=r"tensor 'scales' is float16 \(1, 1, 16\), expected float16 \(2, 1, 16\)"
    ):
        PackedLinear.from_state(
            linear.meta() | {"out_features": 17}, linear.state() | {"codes": np.zeros((2, 1, 512), np.uint8)}
        )
    with pytest.raises(KernelError, match=r"4-bit codes must be in -8..7, found 8..8"):
        one = DenseLinear.from_weight(np.ones((16, 32), np.float32))
        TokenWiseLinear.rounded(
            one, lambda rows: (np.full(rows.shape, 8), np.ones((len(rows), 1), np.float16)), 4, None
        )


def test_native_code_refuses_a_threshold_where_nothing_reads_it() -> None:
    module = dispatch.native()
    if module is None:
        pytest.skip("the native kernels are not built")
    linear = made(16, 32, 4)
    _, arrays = linear.native() or ("", {})
    with pytest.raises(ValueError, match="a linear of layout int4_token has no threshold"):
        module.Linear(layout="int4_token", **arrays, out_features=16, in_features=32, threshold=6.0)
    _, arrays = made(16, 32, 8).native() or ("", {})
    with pytest.raises(ValueError, match="the threshold of outliers must be a finite number above 0, or 0 for none"):
        module.Linear(layout="int8_token", **arrays, out_features=16, in_features=32, threshold=-6.0)


def test_linears_that_read_the_same_rows_have_one_threshold() -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model = decoder(LLAMA, 32)
    for role, threshold in (("query", 6.0), ("key", None)):
        name = f"layers.0.attention.{role}"
        model.replace(name, stored(model.model.linears[name], 8, None, threshold))
    with pytest.raises(KernelError, match="read the same rows leave outliers of one threshold apart"):
        compile_plan(model, 8)
