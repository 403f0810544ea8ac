"""SqueezeLLM: gradients against autograd, the split, and tables against k-means written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, RowTableLinear, SparseLinear
from thrifty.models.model import Model
from thrifty.reference.attention import causal
from thrifty.reference.loading import build
from thrifty.reference.sensitivity import squared_gradients
from thrifty.weights import sensitive_technique
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.squeezellm import quantised, sparse_part

TEXT = CalibrationSet("numbers", np.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]], np.int64))


def squeezed(**options: Any) -> Any:
    return registry.build("weights", {"technique": "squeezellm"} | options)


def fisher_of(model: Model, name: str) -> Floats:
    """Σ g² of one linear by autograd on its dense weight."""
    linear = model.linears[name]
    total = torch.zeros(linear.out_features, linear.in_features)
    for row in TEXT.sequences:
        plain = DenseLinear.from_weight(linear.dequantize().copy(), bias=linear.bias)
        changed = Model(model.config, model.linears | {name: plain}, model.norms)
        decoder = build(changed).decoder
        weight = decoder.get_submodule(name).weight
        assert isinstance(weight, torch.nn.Parameter) and weight.requires_grad
        tokens = torch.from_numpy(row)
        logits = decoder(tokens, torch.arange(len(tokens)), causal(model.config))
        cross_entropy(logits[:-1], tokens[1:]).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        total += weight.grad**2
    return total.numpy()


NAMES = ("layers.0.attention.query", "layers.0.mlp.down", "layers.1.attention.value")


def test_sensitivity_is_the_squared_gradient_of_each_sequence(model: Model) -> None:
    found = squared_gradients(model, TEXT.sequences, NAMES)
    for name in NAMES:
        np.testing.assert_allclose(found[name], fisher_of(model, name), rtol=1e-3, atol=1e-9)
        assert found[name].any()


def test_sensitivity_of_stored_linears_and_of_experts(experts: Model) -> None:
    """Of packed weights too, and 0 for an expert that no token reached."""
    packed = prepare(experts, [registry.build("weights", {"technique": "rtn"})])
    names = [name for name in packed.linears if ".experts." in name]
    found = squared_gradients(packed, TEXT.sequences, [*names, NAMES[0]])
    np.testing.assert_allclose(found[NAMES[0]], fisher_of(packed, NAMES[0]), rtol=1e-3, atol=1e-9)
    reached = names[int(np.argmax([found[name].max() for name in names]))]
    np.testing.assert_allclose(found[reached], fisher_of(packed, reached), rtol=1e-3, atol=1e-9)


def test_the_most_sensitive_leave_first_then_the_largest() -> None:
    weight = np.array([[9, -8, 1, 2], [3, 4, 5, -7]], np.float32)
    fisher = np.array([[5, 0, 1, 1], [1, 6, 1, 1]], np.float32)
    assert not sparse_part(weight, fisher, 0, 0).any()
    assert np.argwhere(sparse_part(weight, fisher, 0.125, 0)).tolist() == [[1, 1]]
    assert np.argwhere(sparse_part(weight, fisher, 0.25, 0.25)).tolist() == [[0, 0], [0, 1], [1, 1], [1, 3]]


def test_codes_are_the_nearest_of_tables_that_weights_pull() -> None:
    """eight values a row by k-means, weighted; every code by hand."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((20, 64)).astype(np.float32)
    fisher = (random.random((20, 64)) ** 3).astype(np.float32)
    outside = np.zeros(weight.shape, np.bool_)
    linear = quantised(weight, fisher, outside, 3)
    restored = linear.dequantize()
    tables = linear.tables.reshape(-1, 8)[:20] * linear.scales.reshape(-1, 1)[:20].astype(np.float32)
    for row in range(20):
        for column in range(64):
            distances = np.abs(weight[row, column] - tables[row])
            assert np.isclose(abs(weight[row, column] - restored[row, column]), distances.min(), atol=1e-6)
    unweighted = quantised(weight, np.ones_like(fisher), outside, 3).dequantize()
    assert (fisher * np.square(restored - weight)).sum() < 0.8 * (fisher * np.square(unweighted - weight)).sum()
    assert np.square(unweighted - weight).sum() < np.square(restored - weight).sum()


def test_a_row_without_gradients_is_clustered_without_weights() -> None:
    random = np.random.default_rng(0)
    weight, nothing = random.standard_normal((4, 64)).astype(np.float32), np.zeros((4, 64), np.float32)
    outside = np.zeros(weight.shape, np.bool_)
    outside[0, :4] = outside[1] = True
    found = quantised(np.where(outside, 0, weight), nothing, outside, 4).dequantize()
    apart = np.abs(found - np.where(outside, 0, weight))
    assert apart[0, 4:].max() < 0.5 and apart[2:].max() < 0.5 and not found[1].any()


def test_single_weights_come_back_as_they_were(plain: Model) -> None:
    small = prepare(plain, [squeezed(bits=4, outliers=0.01, sensitive=0.01)], calibration=TEXT)
    for name in NAMES:
        linear, before = small.linears[name], plain.linears[name].dequantize()
        assert isinstance(linear, SparseLinear) and linear.label == "lut4+sparse"
        assert abs(linear.share - 0.02) < 1e-3
        rows = np.repeat(np.arange(linear.out_features), np.diff(linear.starts))
        found = linear.dequantize()[rows, linear.columns]
        np.testing.assert_allclose(found, before[rows, linear.columns], rtol=1e-3, atol=1e-5)
        largest = np.sort(np.abs(before).reshape(-1))[-round(0.01 * before.size) :]
        assert np.isin(largest, np.abs(before[rows, linear.columns])).mean() > 0.9
    assert small.linears["embedding"] is plain.linears["embedding"]
    assert small.nbytes < plain.nbytes


def test_dense_alone_has_no_sparse_part_and_keeps_biases(model: Model) -> None:
    small = prepare(model, [squeezed(bits=3, outliers=0, sensitive=0)], calibration=TEXT)
    for name, linear in small.linears.items():
        before = model.linears[name]
        if LinearInfo(name, linear).role in ("embedding", "head", "router", "shared_gate"):
            assert linear is before
        else:
            assert isinstance(linear, RowTableLinear) and linear.bits == 3
            assert (linear.bias is None) == (before.bias is None)
            assert before.bias is None or np.array_equal(linear.bias, before.bias)


def test_passes_of_any_size_give_the_same(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later passes still see the model as it was before the first linear changed."""
    technique = squeezed(skip=["*.gate", "*.key"])
    whole = prepare(plain, [technique], calibration=TEXT)
    monkeypatch.setattr(sensitive_technique, "PASS_BYTES", 100_000)
    for in_place in (False, True):
        parts = prepare(plain, [technique], calibration=TEXT, in_place=in_place)
        for name, linear in whole.linears.items():
            for key, array in linear.state().items():
                assert np.array_equal(parts.linears[name].state()[key], array), (name, key)


def test_what_is_not_finite_is_named(plain: Model) -> None:
    name = NAMES[0]
    weight = plain.linears[name].dequantize().copy()
    weight[1, 2] = np.nan
    broken = LinearInfo(name, DenseLinear.from_weight(weight))
    shown = Activations(np.empty((0, weight.shape[1]), np.float32), np.ones_like(weight))
    with pytest.raises(KernelError, match=r"'layers.0.attention.query' has 1 NaN"):
        squeezed().compress(broken, shown)
    plain.replace(name, broken.linear)
    with pytest.raises(RecipeError, match="technique 'squeezellm': gradients of 'layers.0.attention.query'"):
        prepare(plain, [squeezed()], calibration=TEXT)
    with pytest.raises(RecipeError, match="option 'bits'"):
        squeezed(bits=5)
    with pytest.raises(RecipeError, match="Did you mean 'outliers'"):
        squeezed(outlier=0.1)
