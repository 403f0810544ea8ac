"""A stored linear in torch: its own memory, its values, gradients, and what trains."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from thrifty.arrays import BFLOAT16, Array, Floats
from thrifty.errors import KernelError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.linear import Linear


def weight_of(rows: int, columns: int) -> Floats:
    return np.random.default_rng(rows).standard_normal((rows, columns), dtype=np.float32)


def every_kind(weight: Floats, bias: Floats | None = None) -> list[PackedLinear]:
    kinds: list[PackedLinear] = [
        GroupLinear.quantize(weight, bits, 32, symmetric, bias) for bits in (4, 8) for symmetric in (True, False)
    ]
    kinds += [DenseLinear.from_weight(weight, dtype, bias=bias) for dtype in (np.dtype(np.float32), BFLOAT16)]
    kinds.append(DenseLinear.from_weight(weight, BFLOAT16, packed=True, bias=bias))
    return kinds


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64, BFLOAT16])
def test_an_array_and_its_tensor_are_one_memory(dtype: type) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    tensor = tensor_of(array)
    tensor[1, 2] = 40
    assert float(array[1, 2]) == 40.0 and tensor.data_ptr() == array.ctypes.data
    back = array_of(tensor)
    assert np.shares_memory(array, back) and back.dtype == array.dtype and back.shape == (3, 4)


def test_a_read_only_array_gives_a_tensor_without_a_warning() -> None:
    array: Array = np.frombuffer(bytes(16), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tensor_of(array).data_ptr() == array.ctypes.data


def test_products_rows_and_bias_agree_with_the_expanded_weight() -> None:
    weight, bias = weight_of(37, 75), weight_of(1, 37)[0]
    x, picked = torch.randn(2, 3, 75), torch.tensor([36, 0, 17, 17])
    for stored in every_kind(weight, bias):
        linear, full = Linear(stored), torch.from_numpy(stored.dequantize())
        torch.testing.assert_close(linear(x), x @ full.T + torch.from_numpy(bias), atol=1e-5, rtol=0)
        assert linear(x.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(linear.rows(picked), full[picked])
        assert linear.rows(picked[:0]).shape == (0, 75)


def test_gradients_reach_the_input_in_every_format() -> None:
    """Over 2,100 rows: three tiles."""
    weight, bias = weight_of(2100, 20), weight_of(1, 2100)[0]
    for stored in every_kind(weight, bias):
        linear = Linear(stored)
        x, upstream = torch.randn(4, 20, requires_grad=True), torch.randn(4, 2100)
        (linear(x) * upstream).sum().backward()
        expected = upstream @ torch.from_numpy(stored.dequantize())
        torch.testing.assert_close(x.grad, expected, atol=1e-3, rtol=0, msg=stored.label)


def test_only_plain_weights_train_and_that_changes_the_stored_array() -> None:
    for stored in every_kind(weight_of(8, 8)):
        stored.set_bias(np.zeros(8, np.float32))
        linear = Linear(stored)
        trainable = {name for name, one in linear.named_parameters() if one.requires_grad}
        plain = isinstance(stored, DenseLinear) and not stored.packed
        assert trainable == ({"weight", "bias"} if plain else set())
        if plain:
            linear(torch.ones(1, 8)).sum().backward()
            assert linear.weight is not None and linear.weight.grad is not None
            assert bool((linear.weight.grad == 1).all())
            before = stored.dequantize()
            torch.optim.SGD(linear.parameters(), lr=1.0).step()
            assert np.allclose(stored.dequantize(), before - 1, atol=0.02) and np.all(stored.bias == -1)


def test_what_may_not_be_written_does_not_train() -> None:
    weight = weight_of(8, 8)
    weight.flags.writeable = False
    linear = Linear(DenseLinear(8, 8, weight, packed=False))
    assert linear.weight is not None and not linear.weight.requires_grad
    assert linear.weight.data_ptr() == weight.ctypes.data


def test_another_product_stands_in_where_no_gradient_is_asked_for() -> None:
    stored = GroupLinear.quantize(weight_of(48, 64), 4, 32, bias=weight_of(1, 48)[0])
    linear, x = Linear(stored), torch.randn(3, 64)
    exact = linear(x)
    linear.product = stored.oracle
    quantised = linear(x)
    assert torch.equal(quantised, torch.from_numpy(stored.oracle(x.numpy()) + stored.bias))
    assert 1e-5 < (quantised - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.equal(linear(x.clone().requires_grad_()).detach(), exact)


def test_wrong_calls_are_refused_by_name() -> None:
    linear = Linear(GroupLinear.quantize(weight_of(8, 32), 4, 32))
    with pytest.raises(KernelError, match="input has 31 features, this linear layer takes 32"):
        linear(torch.zeros(1, 31))
    with pytest.raises(KernelError, match=r"row 8 is outside 0\.\.7"):
        linear.rows(torch.tensor([8]))
